"""What fuzzing starts from, by target and kind: `python -m tests.fuzz.seeds` writes it to tests/fuzz/corpus."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.targets import OPEN, PATCH, PUBLISH, SEND, SERVE, STAND_BY, WAIT, send, step
from tests.fuzz.world import KINDS, NUMBERS

CORPUS = Path(__file__).parent / "corpus"
OTHER_WORKER = 0x80 | 1 << 5  # at PREROUTING, without flags
HANDSHAKE = send("tcp_syn") + send("tcp_synack_second") + send("tcp_ack")
CLOSE = send("tcp_fin") + send("tcp_fin_reply") + send("tcp_ack")
SEQUENCES = {
    "every_kind": OPEN,
    "every_kind_in_eights": SERVE,
    "tcp_handshake_data_close": HANDSHAKE + send("tcp_data") + send("tcp_data_reply") + CLOSE,
    "tcp_reset_by_the_server": HANDSHAKE + send("tcp_rst_reply") + send("tcp_syn"),
    "tcp_syn_on_a_closed_connection": HANDSHAKE + CLOSE + send("tcp_syn"),
    "tcp_super_packet": HANDSHAKE + send("tcp_super_packet"),
    "tcp_syns_fill_the_table": send("tcp_syn", 0, 64) + send("tcp_syn", 64, 64),
    "tcp_timers": HANDSHAKE + step(WAIT, 225, change=(0, 2)) + send("tcp_ack") + step(WAIT, 225, 1, change=(0, 3)),
    "tcp_mid_stream_refused": step(PUBLISH, 1) + send("tcp_ack", 0, 64),
    "tcp_mid_stream_begins": step(PUBLISH, 2) + send("tcp_data", 0, 8),
    "tcp_server_removed": HANDSHAKE + step(PUBLISH, 2) + send("tcp_data") + send("tcp_syn", 0, 4),
    "tcp_service_removed": HANDSHAKE + step(PUBLISH, 3) + send("tcp_data") + send("tcp_data_reply"),
    "tcp_weights": step(PUBLISH, 1) + send("tcp_syn", 0, 32),
    "tcp_other_worker": send("tcp_syn") + send("tcp_ack", way=OTHER_WORKER) + send("tcp_fin", way=OTHER_WORKER),
    "tcp_entry_relied_on": send("tcp_syn", 0, 64) + step(STAND_BY, 3) + step(WAIT, 255, 1, change=(0, 2)) + SERVE[:160],
    "udp_question_answer": send("udp", 0, 4) + send("udp_reply", 0, 4),
    "udp_timers": send("udp", 0, 16) + step(WAIT, 188, 1, change=(0, 4)) + send("udp_reply", 0, 16),
    "udp_no_server": send("udp_no_server", 0, 64),
    "icmp_about_both_directions": HANDSHAKE + send("icmp_frag_needed") + send("icmp_unreachable_reply"),
    "icmp_damaged": HANDSHAKE + step(SEND, NUMBERS["icmp_frag_needed"], change=(60, 1)),
    "ip6_question_answer_error": send("ip6_udp") + send("ip6_udp_reply") + send("icmp6_time_exceeded"),
    "dr_every_way": b"".join(send(name, 0, 4) for name in KINDS if "dr_" in name),
    "mark_every_way": b"".join(send(name, 0, 4) for name in KINDS if "mark_" in name or name.endswith("_head")),
    "tun_every_way": b"".join(send(name, 0, 4) for name in KINDS if "tun_" in name),
    "tun_path_mtu": send("tun_tcp_syn") + send("tun_icmp_frag_needed") + send("tun_super_packet", 0, 8),
    "udp_moves_on": send("udp", 0, 8) + step(PUBLISH, 1) + send("udp", 0, 8) + send("udp_reply", 0, 8),
    "ip6_no_server": send("ip6_udp_no_server", 0, 64),
}


def patch(part: int, data: bytes, at: int, number: int = 0) -> bytes:
    """`data` into the header (part 0), a slot (1), an entry (2) or every entry (3)."""
    return PATCH.pack(part | (len(data) - 1) << 2, number, at, data)


TABLES = {
    "sound": b"",
    "magic": patch(0, b"X", 0),
    "capacity": patch(0, b"\xff\xff", 16),
    "boot": patch(0, b"X", 48),
    "generation": patch(0, b"\xff" * 8, 64),
    "slot_unused": patch(1, b"\0", 37, 1),
    "slot_used": patch(1, b"\1", 37, 500),
    "slot_of_another": patch(1, b"\7\7", 34, 1),
    "entry_client": patch(2, b"\7" * 8, 8, 1),
    "entry_virtual": patch(3, b"\7" * 8, 16),
    "entry_server": patch(3, b"\7" * 8, 32),
    "entry_ports": patch(3, b"\7" * 6, 48),
    "entry_protocol": patch(3, b"\1", 54),
    "entry_slot_0": patch(3, bytes(4), 56),
    "entry_slot_out_of_range": patch(3, b"\xff\xff\xff\x7f", 56),
    "entry_slot_of_nobody": patch(3, b"\x99\0\0\0", 56),
    "entry_life": patch(3, b"\2", 60),
    "entry_live": patch(3, b"\1", 60),
    "entry_state": patch(3, b"\x0b", 61),
    "entry_state_beyond_a_shift": patch(3, b"\x38", 61),
    "entry_active": patch(3, b"\1", 62),
    "entry_expired": patch(3, bytes(4), 64),
    "entry_expires_in_years": patch(3, b"\xff" * 4, 64),
    "entry_links": patch(3, b"\xff" * 8, 68) + patch(3, b"\xff" * 8, 76),
    "entry_hash": patch(3, b"\xff" * 8, 88),
    "two_entries_of_one_client": patch(2, b"\x40\x9c", 48, 2) + patch(2, b"\x40\x9c", 48, 3),
}
SEEDS = {"packet": {name: kind.packet for name, kind in KINDS.items()}, "sequence": SEQUENCES, "table": TABLES}

if __name__ == "__main__":
    for target, seeds in SEEDS.items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (CORPUS / target / f"{name}.bin").write_bytes(data)
