from collections.abc import Sequence

class Service:
    def __init__(
        self,
        protocol: int,
        address: bytes,
        port: int,
        scheduler: str,
        servers: Sequence[tuple[int, bytes, int, int]],
        previous: Service | None = None,
    ) -> None: ...

class Snapshot:
    services: tuple[Service, ...]
    def __init__(self, services: Sequence[Service], tcp: int = 900, tcp_fin: int = 120, udp: int = 300) -> None: ...
