from typing import NamedTuple

FAULTS: tuple[str, ...]

class Record(NamedTuple):
    protocol: int
    client: bytes
    cport: int
    virtual: bytes
    vport: int
    server: bytes
    dport: int
    flags: int
    state: int
    mark: int = ...
    timeout: int = ...
    sequence: tuple[int, ...] | None = ...
    data: bytes = ...
    name: bytes = ...

class Message(NamedTuple):
    version: int
    id: int
    records: list[Record]

def decode(data: bytes) -> Message: ...
def encode(message: Message, room: int = 65535) -> bytes: ...
