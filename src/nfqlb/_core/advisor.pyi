from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

class Overrun(BaseException): ...

def interrupt(thread: int) -> None: ...
def named(error: BaseException) -> str: ...

class Server:
    port: int
    weight: int
    @property
    def address(self) -> str: ...
    @property
    def active(self) -> int: ...
    @property
    def inactive(self) -> int: ...
    @property
    def latency(self) -> float: ...

class Flow:
    client_port: int
    virtual_port: int
    protocol: str
    mark: int
    @property
    def client(self) -> str: ...
    @property
    def virtual(self) -> str: ...

class Advice(NamedTuple):
    name: str
    chosen: int
    declined: int
    failed: int
    wrong: int
    late: int
    rested: int
    spent: int
    longest: int
    error: str

_Function = Callable[[Flow, Sequence[Server]], Server | None]

class Advisor:
    name: str
    budget: int
    def __new__(cls, name: str, function: _Function | None, budget: int, error: str = "") -> Self: ...
    def use(self, function: _Function) -> None: ...
    def statistics(self) -> Advice: ...
    def interrupt(self) -> int: ...
