"""What packets make of an SCTP association, told once more and the other way round: only what changes a state is here,
read by hand from net/netfilter/ipvs/ip_vs_proto_sctp.c (sctp_states). For every cell of the core's table, and for the
model of the property tests.
"""

from __future__ import annotations

from collections.abc import Mapping

SHORT = ("NO", "I1", "IN", "CS", "CR", "CW", "CO", "CE", "ES", "SS", "SR", "SA", "RJ", "CL")
LONG = dict(
    zip(
        SHORT,
        (
            *("NONE", "INIT1", "INIT", "C-SENT", "C-REPLIED", "C-WAIT", "COOKIE", "C-ECHOED", "ESTABLISHED"),
            *("S-SENT", "S-RECEIVED", "S-ACK-SENT", "REJECTED", "CLOSED"),
        ),
        strict=True,
    )
)
SECONDS = dict.fromkeys(SHORT, 61) | {"NO": 2, "I1": 4, "ES": 900, "RJ": 4}
TIMEOUTS = dict(  # what they are called, by state
    zip(
        LONG.values(),
        (
            *("sctp_none", "sctp_init1", "sctp_init", "sctp_cookie_sent", "sctp_cookie_replied", "sctp_cookie_wait"),
            *("sctp_cookie", "sctp_cookie_echoed", "sctp", "sctp_shutdown_sent", "sctp_shutdown_received"),
            *("sctp_shutdown_ack_sent", "sctp_rejected", "sctp_closed"),
        ),
        strict=True,
    )
)
EVENTS = {  # chunks that are no event change what DATA does
    "init": "INIT",
    "init ack": "INIT ACK",
    "cookie echo": "COOKIE ECHO",
    "cookie ack": "COOKIE ACK",
    "shutdown": "SHUTDOWN",
    "shutdown ack": "SHUTDOWN ACK",
    "shutdown complete": "SHUTDOWN COMPLETE",
    "error": "ERROR",
    "abort": "ABORT",
}
OF_CHUNK = {chunk: event for event, chunk in EVENTS.items()}


def changes(text: str) -> dict[str, str]:
    """NO I1 > CW, CW > CO: each state on the left becomes the one on the right."""
    found = {}
    for part in text.split(", ") if text else []:
        before, _, after = part.partition(" > ")
        found.update(dict.fromkeys(before.split(), after))
    return found


ALL = " ".join(SHORT)
FROM_CLIENT = {
    "data": changes("NO > ES"),
    "init": changes("NO > I1, I1 RJ CL > IN"),
    "init ack": changes("NO I1 IN > CW, CW > CO"),
    "cookie echo": changes("NO CS > CR, I1 > IN"),
    "cookie ack": changes("NO CE > ES"),
    "shutdown": changes("NO ES > SR"),
    "shutdown ack": changes("NO SS SA > CL, I1 > IN"),
    "shutdown complete": changes("NO I1 IN SA > CL"),
    "error": changes("NO CE > CL"),
    "abort": changes(f"{ALL} > CL, CW > RJ"),
}
FROM_SERVER = {
    "data": changes("NO > ES"),
    "init": changes(f"{ALL} > CW, ES > ES"),
    "init ack": changes("NO I1 IN > CS"),
    "cookie echo": changes("NO I1 IN CS CR CW CO > CE"),
    "cookie ack": changes("NO I1 IN CS CR CW CO CE > ES"),
    "shutdown": changes("NO I1 IN CS CR CW CO CE ES > SS"),
    "shutdown ack": changes("NO I1 IN CS CR SS SR > SA"),
    "shutdown complete": changes("NO > CL"),
    "error": changes("NO I1 IN CS CR > CL"),
    "abort": changes(f"{ALL} > CL, I1 > RJ"),
}
CLIENT_ONLY = {
    "data": changes("NO CW > ES"),
    "init": changes("NO > I1, I1 IN CS CR CW RJ CL > IN"),
    "init ack": changes("NO I1 IN CS CR CW > CE"),
    "cookie echo": changes("NO I1 IN CS CR CW > ES"),
    "cookie ack": changes("NO CS CR CO CE > ES"),
    "shutdown": changes("NO ES > SR"),
    "shutdown ack": changes("NO ES SS SA > CL, I1 > IN"),
    "shutdown complete": changes("NO I1 IN CS CR SR SA > CL"),
    "error": changes("NO > CL"),
    "abort": changes(f"{ALL} > CL, CW > RJ"),
}
WAYS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "from client": FROM_CLIENT,
    "from server": FROM_SERVER,
    "client only": CLIENT_ONLY,
}


def after(way: str, event: str, state: str) -> str:
    return WAYS[way][event].get(state, state)
