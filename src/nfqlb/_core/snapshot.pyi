from collections.abc import Mapping, Sequence
from typing import Self

from nfqlb._core.advisor import Advisor

ANSWERS: tuple[str, ...]
METHODS: tuple[str, ...]

FATES: dict[str, int]

class Hop:
    def __new__(
        cls,
        interface: int,
        mtu: int,
        destination: bytes = b"",
        source: bytes = b"",
        address: bytes = ...,
        local: bool = False,
        mark: int = 0,
        mask: int = 0,
    ) -> Self: ...

class Locality: ...

class Service:
    def __new__(
        cls,
        protocol: int,
        address: bytes,
        port: int,
        scheduler: str,
        servers: Sequence[tuple[int, bytes, int, int, str] | tuple[int, bytes, int, int, str, int, int]],
        previous: Service | None = None,
        *,
        last: int = 0,
        mark: int = 0,
        flags: Sequence[str] = (),
        persistence: int = 0,
        mask: bytes = ...,
        moves_quiesced: bool = False,
        by_call: bool = False,
        one_packet: bool = False,
        mss: int = 0,
        offload: bool = True,
        advisor: Advisor | None = None,
        shadow: Service | None = None,
        timeouts: Sequence[int] = (),
        connections_max: int = 0,
        maglev_size: int = 4093,
        hash_key: bytes = b"",
    ) -> Self: ...
    advisor: Advisor | None
    shadow: Service | None
    def compared(self) -> tuple[int, int, dict[int, tuple[int, int]], list[tuple[bytes, int, int, int]]]: ...
    def collect(self, now: int, all_unused: bool) -> int: ...
    @property
    def waited(self) -> int: ...
    @property
    def ranked(self) -> bool: ...

class Snapshot:
    services: tuple[Service, ...]
    def __new__(
        cls,
        services: Sequence[Service],
        tcp: int = 900,
        tcp_fin: int = 120,
        udp: int = 300,
        *timeouts: int,
        no_server: str = "icmp",
        no_connection: str = "pass",
        sloppy: bool = False,
        sloppy_sctp: bool = False,
        gone: Mapping[int, str] | None = None,
        conn_reuse_mode: int = 3,
        expire_nodest_conn: bool = False,
        expire_quiescent_template: bool = False,
        expire_quiescent_udp: bool = False,
        drop_entry: int = 0,
        drop_packet: int = 0,
        secure_tcp: int = 0,
        am_droprate: int = 10,
        amemthresh: int = 0,
        connections_max: int = 0,
    ) -> Self: ...
