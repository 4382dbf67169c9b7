"""Connection sync between two directors whose messages somebody harms."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from netns import load
from netns.director import Director
from netns.host import Process, until
from netns.pair import SECONDS, Pair

PORT = 8848
STICKY = 8  # port whose clients keep their server
HELD, ROUNDS = 160, 4
KEY = "0123456789abcdef0123456789abcdef\n"
HARMS = ("lost", "changed", "late", "again", "old")


class Between:
    """The adversary, on the storage's machine."""

    def __init__(self, net: Pair, part: str) -> None:
        ends = (director.v4 for director in net.directors)
        self.process: Process = net.storage.spawn(
            [sys.executable, "-m", "netns.adversary", str(PORT), *ends, "8", part], log="adversary.log"
        )
        self.process.says("ready")

    def tell(self, word: str) -> dict[str, int]:
        """ "harm", "pass", or nothing; how often it did what so far."""
        said = len(self.process.text.splitlines())
        self.process.tell(word)
        until(lambda: len(self.process.text.splitlines()) > said, 10, lambda: "the adversary does not answer")
        found: dict[str, int] = json.loads(self.process.text.splitlines()[-1])
        return found


def known(director: Director) -> dict[tuple[str, str, str], str]:
    """Where the connections that peers hear of lead, and their templates."""
    return {
        (one["protocol"], one["client"], one["virtual"]): one["destination"]
        for one in director.show("connections")["connections"]
        if one["template"] or one["state"] == "ESTABLISHED"
    }


def sync(director: Director) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(director.cli("sync", "status", "--json").stdout)
    return found


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_harmed_messages_bring_no_wrong_server_and_all_is_there_once_they_pass(tmp_path: Path, sealed: bool) -> None:
    """Then the backup takes over: each connection goes on."""
    lines = f'[sync]\npeers = ["{{peer}}"]\nport = {PORT}\nid = 7\n'
    if sealed:
        key = tmp_path / "key"
        key.write_text(KEY)
        key.chmod(0o600)
        lines += f'key_file = "{key}"\n'
    with Pair(web=False, echo=True) as net:
        between = Between(net, "any" if sealed else "head")
        for server in net.servers:
            server.start_echo(STICKY)
        services = net.services(7) + net.services(STICKY, more="persistence.timeout = 300\n")
        net.start_pair(lines.format(peer=net.storage.v4) + services)
        master, backup = net.directors
        until(lambda: all(sync(one)["ready"] for one in net.directors), SECONDS, lambda: "they do not meet")

        between.tell("harm")
        held = []
        for turn in range(ROUNDS):
            family, port = (4, 6)[turn % 2], (7, STICKY)[turn // 2]
            held.append(load.Held(net.client, net.vip(family), HELD // ROUNDS, port))
            right = known(master)
            wrong = {at: to for at, to in known(backup).items() if right.get(at, to) != to}
            assert not wrong

        def told() -> bool:
            """The backup has met all of it."""
            found, did = sync(backup), between.tell("")
            noticed = not sealed or (found["messages_unsealed"] and found["messages_replayed"])
            return bool(found["peers"][0]["lost"] and noticed) and set(HARMS) <= did.keys()

        until(told, SECONDS, lambda: f"not all was met: {sync(backup)}, {between.tell('')}")
        did = between.tell("pass")
        until(lambda: known(backup) == known(master), SECONDS, lambda: f"they differ: {sync(backup)}, {did}")
        assert len(known(backup)) == HELD + 2, "each, and a template of each family"
        found = sync(backup)
        assert bool(found["messages_unsealed"]) == bool(found["messages_replayed"]) == sealed, found

        net.destroy(master)
        net.role(backup, "master")
        assert sum(one.alive() for one in held) == HELD
