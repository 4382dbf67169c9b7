from typing import Self

from nfqlb._core.datapath import Worker

class Transmitter:
    lost: int
    def __new__(cls, mute: bool = False) -> Self: ...
    def send(self, worker: Worker) -> None: ...
