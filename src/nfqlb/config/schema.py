"""The configuration file as a JSON schema, for editors that complete and check as one types.

Strategy: keys and types come from the tables that the reader goes by, defaults from the values of the model, so the
schema cannot know more or less than they do. What a key is for stands here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nfqlb.config.toml import (
    ANSWERS,
    CHECK,
    DIRECTOR,
    FAMILIES,
    HA,
    HEALTH,
    OPTIONS,
    PERSISTENCE,
    QUORUM,
    REAL,
    SERVICE,
    SYNC,
    TIMEOUTS,
    TOP,
    Seconds,
    Time,
    Types,
)
from nfqlb.logs import FORMATS
from nfqlb.model import (
    ANNOUNCE,
    BUDGET_MAX,
    CHECKS,
    DROPRATE_MAX,
    EXITS,
    FLAGS,
    HASH_KEY,
    HOLD_MAX,
    HTTP_VERSIONS,
    MAGLEV_MAX,
    MAGLEV_MIN,
    MARK_MAX,
    MODES,
    MSS_MAX,
    NO_CONNECTION,
    NO_SERVER,
    ON_DOWN,
    PERSISTENCE_ENGINES,
    PLACES_MAX,
    QUIESCENT,
    REQUIRE,
    SCHEDULERS,
    SLOW_START_MAX,
    SYNC_RANGES,
    SYNC_ROLES,
    THRESHOLD_MAX,
    THROUGH,
    TIME,
    TLS,
    WEIGHT_MAX,
    Answers,
    Check,
    Health,
    Options,
    OwnTimeouts,
    Persistence,
    Quorum,
    Real,
    Service,
    Sync,
    Timeouts,
)
from nfqlb.runconfig import (
    ADVERT_SECONDS,
    CONNECTIONS_MAX,
    CONNECTIONS_MIN,
    DIVERTERS,
    DR_BY,
    ENGINES,
    FIREWALLS,
    KEEPALIVED,
    OFFLOADS,
    ON_FAILURE,
    PATIENCE_MAX,
    PREEMPT_DELAY_MAX,
    WORKERS_MAX,
    Ha,
    RunConfig,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"
UNITS = {"pattern": f"^{TIME.pattern}$"}  # where a time is a text
KINDS: dict[type, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    Seconds: {"type": ["integer", "string"], **UNITS},
    Time: {"type": ["number", "string"], **UNITS},
    bool: {"type": "boolean"},
    dict: {"type": "object"},
    list: {"type": "array"},
}
SECONDS = {"minimum": 1, "maximum": 2**31 // 1000}
SCHEDULER = {"anyOf": [{"enum": [*SCHEDULERS]}, {"pattern": r"^(/\S*/)?[^/\s]+\.py$"}]}
MODE = {"minimum": 0, "maximum": 3}
SYNC_LIMITS = {name: {"minimum": low, "maximum": high} for name, low, high in SYNC_RANGES}
WHEN = "0 never, 1 and 2 while places are few, 3 always."
WORDS: dict[tuple[str, str], dict[str, Any]] = {
    ("director", "name"): {"description": "Names socket, sets, tables and files of this director."},
    ("director", "api"): {"description": "The path of the API socket."},
    ("director", "vip_dev"): {"description": "The device that the VIPs are added to."},
    ("director", "queue"): {"description": "The first queue number.", "minimum": 0, "maximum": 65535},
    ("director", "workers"): {"description": "Threads that take packets.", "minimum": 1, "maximum": WORKERS_MAX},
    ("director", "engine"): {"description": "How packets are taken.", "enum": [*ENGINES]},
    ("director", "diverter"): {"description": "What brings packets to the queues.", "enum": [*DIVERTERS]},
    ("director", "firewall"): {"description": "Accept what is forwarded, or leave that to you.", "enum": [*FIREWALLS]},
    ("director", "on_failure"): {
        "description": "What becomes of packets that the director does not take: dropped, or past it.",
        "enum": [*ON_FAILURE],
    },
    ("director", "connections"): {
        "description": "The most connections at a time.",
        "minimum": CONNECTIONS_MIN,
        "maximum": CONNECTIONS_MAX,
    },
    ("director", "dr_by"): {"description": "What direct routing sends packets by.", "enum": [*DR_BY]},
    ("director", "dr_mask"): {
        "description": "The bits of the packet mark that are ours.",
        "minimum": 1,
        "maximum": MARK_MAX,
    },
    ("director", "offload"): {
        "description": "Whether the kernel may forward what is established by itself.",
        "enum": [*OFFLOADS],
    },
    ("director", "metrics"): {"description": "ADDRESS:PORT that serves metrics for Prometheus."},
    ("director", "log_format"): {"description": "Lines for people or for machines.", "enum": [*FORMATS]},
    ("director", "script_user"): {"description": "Whom scripts run as; empty for no scripts."},
    ("director", "notify"): {"description": "The command that hears of who goes down or comes back."},
    ("director", "webhook"): {"description": "The URL that events are posted to as JSON."},
    ("director", "webhook_token"): {"description": "The file with the token that it wants."},
    ("director", "mail_to"): {"description": "Who gets mail; several with commas."},
    ("director", "mail_from"): {"description": "Whom mail comes from."},
    ("director", "smtp"): {"description": "NAME:PORT of the mail server."},
    ("director", "smtp_login"): {"description": "The file with USER:PASSWORD for it."},
    ("ha", "interface"): {"description": "The device that VRRP is spoken on."},
    ("ha", "vrid"): {"description": "The number of the group.", "minimum": 1, "maximum": 255},
    ("ha", "priority"): {"description": "The highest is master.", "minimum": 1, "maximum": 254},
    ("ha", "interval"): {
        "description": "Seconds between adverts.",
        "minimum": ADVERT_SECONDS[0],
        "maximum": ADVERT_SECONDS[1],
    },
    ("ha", "peers"): {
        "description": "The other directors; none: the multicast group.",
        "items": {"type": "string"},
    },
    ("ha", "source"): {"description": "The address that adverts come from, if not the device's first."},
    ("ha", "preempt"): {"description": "Whether it takes over from a master of lower priority when it comes back."},
    ("ha", "preempt_delay"): {
        "description": "Seconds that it waits with that.",
        "minimum": 0,
        "maximum": PREEMPT_DELAY_MAX,
    },
    ("ha", "patience"): {
        "description": "Seconds that a director that crashed has to be there again.",
        "minimum": 0,
        "maximum": PATIENCE_MAX,
    },
    ("ha", "addresses"): {
        "description": "What the master has; none: the VIPs of the services.",
        "items": {"type": "string"},
    },
    ("ha", "device"): {"description": "Where it has them, if not on interface."},
    ("ha", "gateways"): {
        "description": "ADDRESS[%DEVICE], what the master has for its real servers to send replies to.",
        "items": {"type": "string"},
    },
    ("ha", "keepalived"): {"description": "Start one, or join that of the machine.", "enum": [*KEEPALIVED]},
    ("ha", "pid_file"): {"description": "Where the number of that one's process stands."},
    ("timeouts", "tcp"): {"description": "Seconds, of established TCP.", **SECONDS},
    ("timeouts", "tcp_fin"): {"description": "Seconds, of TCP after a FIN.", **SECONDS},
    ("timeouts", "udp"): {"description": "Seconds, of UDP.", **SECONDS},
    **{
        ("timeouts", key): {"description": f"Seconds, of TCP in {key.removeprefix('tcp_').upper()}.", **SECONDS}
        for key in TIMEOUTS
        if key.startswith("tcp_") and key != "tcp_fin"
    },
    ("timeouts", "sctp"): {"description": "Seconds, of established SCTP.", **SECONDS},
    **{
        ("timeouts", key): {"description": f"Seconds, of SCTP in {key.removeprefix('sctp_').upper()}.", **SECONDS}
        for key in TIMEOUTS
        if key.startswith("sctp_")
    },
    ("answers", "no_server"): {"description": "The answer where no real server takes any.", "enum": [*NO_SERVER]},
    ("answers", "no_connection"): {
        "description": "The answer to mid-stream TCP and SCTP without a connection.",
        "enum": [*NO_CONNECTION],
    },
    ("answers", "sloppy_tcp"): {"description": "Whether mid-stream TCP may begin a connection."},
    ("answers", "sloppy_sctp"): {"description": "Whether mid-stream SCTP may begin a connection."},
    ("options", "conn_reuse_mode"): {
        "description": "When a SYN on a connection that closes is scheduled anew: 0 never, 1 in TIME_WAIT and CLOSE,"
        " 2 and 3 also in FIN_WAIT with dr and tun.",
        "minimum": 0,
        "maximum": 3,
    },
    ("options", "expire_nodest_conn"): {
        "description": "Whether TCP connections end with their real server, and SYNs leave one of weight 0."
    },
    ("options", "expire_quiescent_template"): {
        "description": "Whether persistent clients leave a real server of weight 0."
    },
    ("options", "drop_entry"): {
        "description": f"Whether what never came about is ended early: {WHEN}",
        **MODE,
    },
    ("options", "drop_packet"): {"description": f"Whether some first packets are dropped: {WHEN}", **MODE},
    ("options", "secure_tcp"): {"description": f"Whether TCP states mistrust handshakes: {WHEN}", **MODE},
    ("options", "am_droprate"): {
        "description": "Of so many first packets drop_packet drops one in mode 3.",
        "minimum": 1,
        "maximum": DROPRATE_MAX,
    },
    ("options", "amemthresh"): {
        "description": "Free places of the table, fewer are few; 0 for a sixteenth of it.",
        "minimum": 0,
        "maximum": PLACES_MAX,
    },
    ("options", "connections_max"): {
        "description": "Connections that all services may have, 0 for as many as there are places.",
        "minimum": 0,
        "maximum": PLACES_MAX,
    },
    ("options", "hash_key"): {
        "description": "128 bits in hexadecimal digits with which dh, sh, mh and hrw hash addresses: a secret.",
        "pattern": f"^([0-9a-fA-F]{{{HASH_KEY}}})?$",
    },
    ("options", "backup_only"): {"description": "Whether a backup leaves requests to the local stack."},
    ("options", "expire_quiescent_udp"): {"description": "Whether datagrams leave a real server of weight 0."},
    ("service", "name"): {"description": "For people; no two services have the same."},
    ("service", "vip"): {
        "description": "ADDRESS:PORT[-LAST][/tcp|/udp|/sctp], IPv6 as [ADDRESS]:PORT; port 0 is every port."
    },
    ("service", "fwmark"): {"description": "The netfilter mark, in place of a vip.", "minimum": 1, "maximum": MARK_MAX},
    ("service", "family"): {"description": "Of a fwmark.", "enum": [*FAMILIES], "default": "ipv4"},
    ("service", "mode"): {"description": "How packets reach the real servers.", "enum": [*MODES]},
    ("service", "scheduler"): {"description": "Which real server gets the next connection.", **SCHEDULER},
    ("service", "fallback"): {"description": "Chooses where one in Python does not.", "enum": [*SCHEDULERS]},
    ("service", "budget"): {
        "description": "Microseconds that a scheduler in Python may take for a choice.",
        "minimum": 1,
        "maximum": BUDGET_MAX,
    },
    ("service", "shadow"): {"description": "A scheduler that is only compared with the other.", **SCHEDULER},
    ("service", "flags"): {
        "description": "Of the scheduler.",
        "items": {"enum": sorted({flag for flags in FLAGS.values() for flag in flags})},
    },
    ("service", "persistence"): {"description": "A client stays with its real server."},
    ("service", "one_packet"): {"description": "Each datagram is scheduled on its own."},
    ("service", "mss"): {
        "description": "Bytes that a SYN may announce at most, 0 for any.",
        "minimum": 0,
        "maximum": MSS_MAX,
    },
    ("service", "offload"): {"description": "Whether the kernel may forward what is established by itself."},
    ("sync", "role"): {
        "description": "Whether this director tells its peers, is told, or both.",
        "enum": [*SYNC_ROLES],
    },
    ("sync", "interface"): {"description": "The interface that leads to the peers."},
    ("sync", "id"): {"description": "In every message; others are not heard. 0 hears all.", **SYNC_LIMITS["id"]},
    ("sync", "version"): {"description": "Of the messages; 0 is for kernels before 3.1.", **SYNC_LIMITS["version"]},
    ("sync", "group"): {"description": "The multicast group that messages go to."},
    ("sync", "port"): {"description": "Of UDP for messages, of TCP for whole tables.", **SYNC_LIMITS["port"]},
    ("sync", "ttl"): {"description": "Hops that multicast messages may go.", **SYNC_LIMITS["ttl"]},
    ("sync", "maxlen"): {"description": "Bytes of a message, 480 or more; 0: what the interface takes.", "minimum": 0},
    ("sync", "peers"): {"description": "Addresses of the peers, in the place of a multicast group."},
    ("sync", "key_file"): {"description": "The file with the secret of the group, which only root may read."},
    ("sync", "threshold"): {"description": "The packet of each period that is told.", **SYNC_LIMITS["threshold"]},
    ("sync", "period"): {"description": "Packets between two messages about a connection.", **SYNC_LIMITS["period"]},
    ("sync", "refresh_period"): {
        "description": "Seconds between two of them; 0: by packets.",
        **SYNC_LIMITS["refresh_period"],
    },
    ("sync", "retries"): {"description": "Messages more in a refresh period.", **SYNC_LIMITS["retries"]},
    ("sync", "persist_mode"): {"description": "Whether connections of persistent clients are not told."},
    ("service", "timeouts"): {"description": "In the place of those of all services, where they are not 0."},
    ("service", "connections_max"): {
        "description": "Connections that it may have, 0 for any number.",
        "minimum": 0,
        "maximum": PLACES_MAX,
    },
    ("service", "slow_start"): {
        "description": "Seconds in which a server that begins to get connections works up to its weight, 0 for none.",
        "minimum": 0,
        "maximum": SLOW_START_MAX,
    },
    ("service", "maglev_size"): {
        "description": "Places of mh's table, a prime.",
        "minimum": MAGLEV_MIN,
        "maximum": MAGLEV_MAX,
    },
    ("persistence", "timeout"): {"description": "Seconds after a client's last connection began.", **SECONDS},
    ("persistence", "netmask"): {"description": "The prefix that makes clients one.", "minimum": 1, "maximum": 128},
    ("persistence", "quiescent"): {"description": "Where clients of a server of weight 0 go.", "enum": [*QUIESCENT]},
    ("persistence", "engine"): {
        "description": "What of a client stays together, if not all.",
        "enum": ["", *PERSISTENCE_ENGINES],
    },
    ("service", "health"): {"description": "How its real servers are asked whether they serve."},
    ("health", "type"): {"description": "What is asked.", "enum": [*CHECKS]},
    ("health", "port"): {"description": "The port asked, 0 for the real server's.", "minimum": 0, "maximum": 65535},
    ("health", "interval"): {"description": "Seconds between checks.", "minimum": 0.01, "maximum": 86400},
    ("health", "timeout"): {"description": "Seconds that a check may take.", "minimum": 0.01, "maximum": 86400},
    ("health", "rise"): {"description": "Checks passed in a row, to be up again.", "minimum": 1, "maximum": 1000},
    ("health", "fall"): {"description": "Checks failed in a row, to be down.", "minimum": 1, "maximum": 1000},
    ("health", "retry_delay"): {
        "description": "Seconds to the next check while the last results do not suffice for a change, 0 for interval.",
        "minimum": 0,
        "maximum": 86400,
    },
    ("health", "warmup"): {
        "description": "Seconds within which the first check comes at random, 0 for interval.",
        "minimum": 0,
        "maximum": 86400,
    },
    ("health", "source"): {"description": "The address that checks come from."},
    ("health", "through"): {"description": "Whether the VIP is asked, on the real server.", "enum": [*THROUGH]},
    ("health", "path"): {"description": "Of HTTP."},
    ("health", "host"): {"description": "The name that HTTP and TLS ask for."},
    ("health", "status"): {"description": "HTTP statuses that are well, as in 200,301-302."},
    ("health", "headers"): {"description": "More headers of HTTP, as in 'X-Probe: 1'.", "items": {"type": "string"}},
    ("health", "version"): {"description": "Of HTTP.", "enum": [*HTTP_VERSIONS]},
    ("health", "digest"): {"description": "MD5 or SHA-256 of the body, in hexadecimal."},
    ("health", "tls"): {"description": "From the first byte, or as the protocol has it.", "enum": [*TLS]},
    ("health", "sni"): {"description": "The name that TLS asks for, if not host."},
    ("health", "ca"): {"description": "A file of certificates that the server's must come from."},
    ("health", "cert"): {"description": "A file: the certificate that the server is shown."},
    ("health", "key"): {"description": "A file: the private key of cert."},
    ("health", "payload"): {"description": "What is sent over tcp or udp, in hexadecimal."},
    ("health", "record"): {"description": "The type of record that dns is asked for."},
    ("health", "script"): {"description": "A command; {address}, {port}, {vip} and {vip_port} are filled in."},
    ("health", "exit"): {"description": "What a script's exit code means.", "enum": [*EXITS]},
    ("health", "file"): {"description": "A file with a number."},
    ("health", "factor"): {"description": "How often the number in the file is added to the weight; 0: it must be 0."},
    ("health", "require"): {"description": "How many of several checks must be well.", "enum": [*REQUIRE]},
    ("health", "check"): {"description": "Several checks, with the keys of a single one."},
    ("health", "verify"): {"description": "Whether the certificate must be valid for the host."},
    ("health", "send"): {"description": "What is sent over tcp or udp."},
    ("health", "expect"): {"description": "A regular expression for the answer, or the body."},
    ("health", "query"): {"description": "The name that dns is asked for."},
    ("health", "on_down"): {"description": "What becomes of connections of a server that is down.", "enum": [*ON_DOWN]},
    ("health", "panic"): {
        "description": "Percentage that must be up; below it all servers get connections.",
        "minimum": 0,
        "maximum": 100,
    },
    ("health", "hold"): {
        "description": "Seconds out for each time that it went down before.",
        "minimum": 0,
        "maximum": HOLD_MAX,
    },
    ("health", "hold_max"): {
        "description": "The most of those, and how long it is up until they are forgotten.",
        "minimum": 0,
        "maximum": HOLD_MAX,
    },
    ("health", "passive"): {
        "description": "Handshakes that fail on end until a server is ejected, 0 for no look at them.",
        "minimum": 0,
        "maximum": 1_000_000,
    },
    ("health", "eject"): {
        "description": "Seconds out for each time that it was ejected.",
        "minimum": 0.1,
        "maximum": HOLD_MAX,
    },
    ("health", "max_ejected"): {
        "description": "Percentage of the servers that may be ejected together; one may in any case.",
        "minimum": 1,
        "maximum": 100,
    },
    ("health", "notify_up"): {"description": "The command run when a server is up again."},
    ("health", "notify_down"): {"description": "The command run when a server is down."},
    ("quorum", "up"): {"description": "The command run when the quorum is back."},
    ("quorum", "down"): {"description": "The command run when it is lost."},
    ("quorum", "announce"): {"description": "When the VIP is on its device.", "enum": [*ANNOUNCE]},
    ("service", "quorum"): {"description": "How much of it must be well, and who steps in when it is not."},
    ("quorum", "weight"): {
        "description": "Sum of the weights of servers that are up.",
        "minimum": 1,
        "maximum": WEIGHT_MAX,
    },
    ("quorum", "hysteresis"): {
        "description": "So much less and it is lost, so much more and it is back.",
        "minimum": 0,
        "maximum": WEIGHT_MAX,
    },
    ("quorum", "sorry"): {"description": "ADDRESS[:PORT], the server for when there is no quorum."},
    ("quorum", "sorry_inhibit"): {"description": "Whether its connections go on when the others are back."},
    ("real", "upper"): {
        "description": "Connections from which on it gets no new ones, 0 for no limit.",
        "minimum": 0,
        "maximum": THRESHOLD_MAX,
    },
    ("real", "lower"): {
        "description": "Below these it gets some again, 0 for three quarters of upper.",
        "minimum": 0,
        "maximum": THRESHOLD_MAX,
    },
    ("real", "address"): {"description": "ADDRESS[:PORT]; without a port it is that of the vip."},
    ("real", "agent_port"): {
        "description": "Where its agent listens, if not at the port of the check.",
        "minimum": 0,
        "maximum": 65535,
    },
    ("real", "mode"): {"description": "How packets get there, if not as the service says.", "enum": [*MODES]},
    ("real", "weight"): {
        "description": "The share of connections; 0 takes no new ones.",
        "minimum": 0,
        "maximum": WEIGHT_MAX,
    },
}


def schema() -> dict[str, Any]:
    """A JSON schema of what `nfqlb.config.toml.loads` takes, as far as one can say that."""
    real = _table("real", REAL, Real, required=["address"])
    service = _table("service", SERVICE, Service)
    service["properties"]["persistence"] |= _table("persistence", PERSISTENCE, Persistence)
    service["properties"]["health"] |= _table("health", HEALTH, Health)
    service["properties"]["health"]["properties"]["check"]["items"] = _table("health", CHECK, Check)
    service["properties"]["quorum"] |= _table("quorum", QUORUM, Quorum)
    service["properties"]["timeouts"] |= _own(_table("timeouts", TIMEOUTS, OwnTimeouts))
    service["properties"]["real"] = {"type": "array", "items": real}
    service["oneOf"] = [{"required": ["vip"]}, {"required": ["fwmark"]}]
    sync = _table("sync", SYNC, Sync)
    tables = {
        "director": _table("director", DIRECTOR, RunConfig),
        "ha": _table("ha", HA, Ha, required=["interface", "vrid"]),
        "timeouts": _table("timeouts", TIMEOUTS, Timeouts),
        "answers": _table("answers", ANSWERS, Answers),
        "options": _table("options", OPTIONS, Options),
        "sync": sync,
        "service": {"type": "array", "items": service},
    }
    return {
        "$schema": DIALECT,
        "title": "The configuration of nfqlb",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: tables[name] for name in TOP},
    }


def _own(table: dict[str, Any]) -> dict[str, Any]:
    """A table of timeouts in which 0 stands for those of all services."""
    return {**table, "properties": {key: {**value, "minimum": 0} for key, value in table["properties"].items()}}


def _table(name: str, known: Types, kind: type[msgspec.Struct], **more: Any) -> dict[str, Any]:
    defaults = {field.name: field.default for field in msgspec.structs.fields(kind)}
    keys = {}
    for key, python in known.items():
        default = defaults.get(key)
        stated = {"default": default} if isinstance(default, str | int) and default != "" else {}
        keys[key] = {**KINDS[python], **stated, **WORDS.get((name, key), {})}
    return {"type": "object", "additionalProperties": False, "properties": keys, **more}
