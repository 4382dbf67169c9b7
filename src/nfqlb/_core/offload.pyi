from typing import Self

class Offload:
    KEY: int
    FLOW: int
    PLACE: int
    CONTROL: int
    def __new__(cls, flows: int, places: int, control: int, ring: int, ring_bytes: int, capacity: int) -> Self: ...
    def look_again(self) -> None: ...
    def statistics(self) -> dict[str, int]: ...
