from nfqlb._core.datapath import Worker

class Transmitter:
    lost: int
    def send(self, worker: Worker) -> None: ...
