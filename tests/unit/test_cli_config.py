"""`nfqlb apply` and its kin, over a real socket: what they say, what they change, and the way there and back."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from netns.host import until
from nfqlb.api.client import Client
from nfqlb.config.toml import Loaded, dumps, loads
from nfqlb.errors import ConflictError
from nfqlb.model import Answers, Intent, Options, Persistence, Real, Service, Sync, Timeouts
from nfqlb.runconfig import RunConfig
from tests.intents import intents
from tests.sizes import EXAMPLES
from tests.unit.fakes import DNS, WEB, Command, FakeDirector

FIRST, SECOND, THIRD = WEB.reals
NEW = Service("203.0.113.10", 443, "tcp", "nat", "rr", (Real("10.0.1.11", 443, 2),), persistence=Persistence(60, 24))
AFTER = Intent(
    (replace(WEB, scheduler="lc", reals=(replace(FIRST, weight=5), THIRD, Real("10.0.1.14", 80))), NEW), Timeouts(udp=9)
)
STEPS = """\
~ timeouts udp 300 -> 9
- service [2001:db8::10]:53/udp
~ service 203.0.113.10:80/tcp scheduler wrr -> lc
    - real 10.0.1.12:8080
    ~ real 10.0.1.11:8080 weight 3 -> 5
    + real 10.0.1.14:80
+ service 203.0.113.10:443/tcp scheduler rr persistence timeout 60 netmask 24
    + real 10.0.1.11:443 weight 2
"""


@pytest.fixture
def live(capsys: pytest.CaptureFixture[str], client: Client) -> Command:
    return Command(capsys, NFQLB_API=client.path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "after.toml"
    file.write_text(dumps(Loaded({}, AFTER)))
    return file


def test_a_plan_says_what_would_be_done_and_does_nothing(live: Command, director: FakeDirector, file: Path) -> None:
    assert live("apply", str(file), "--plan") == (0, STEPS + "nothing was done: this is a plan\n", "")
    assert director.revision == 1


def test_apply_does_it_and_says_so(live: Command, director: FakeDirector, file: Path) -> None:
    assert live("apply", str(file)) == (0, STEPS + "applied: revision 2\n", "")
    assert director.intent() == AFTER
    assert live("apply", str(file)) == (0, "nothing to do: revision 2 is that already\n", "")


def test_apply_as_json(live: Command, file: Path) -> None:
    answer = json.loads(live("apply", str(file), "--json").out)
    assert (answer["revision"], answer["applied"], answer["confirm_by"]) == (2, True, None)
    assert answer["steps"][1] == {"action": "delete", "what": "service", "service": "[2001:db8::10]:53/udp"}


def test_apply_notes_what_is_for_the_next_start(live: Command, tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text(dumps(Loaded({"workers": 4, "metrics": "127.0.0.1:9105"}, Intent((WEB, DNS)))))
    assert live("apply", str(file)).out.splitlines() == [
        "! workers = 4 takes effect at the next start; now it is 2",
        "! metrics = 127.0.0.1:9105 takes effect at the next start; now it is nothing",
        "nothing to do: revision 1 is that already",
    ]


def test_a_file_with_mistakes_touches_nothing_and_tells_them_all(
    live: Command, director: FakeDirector, tmp_path: Path
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('[[service]]\nvip = "10.0.0.1"\nmode = "bridge"\n')
    ended = live("apply", str(file))
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 2)
    assert director.revision == 1


def test_of_two_writers_the_second_is_told(live: Command, director: FakeDirector, client: Client, file: Path) -> None:
    live("real", "delete", "203.0.113.10:80", "10.0.1.12:8080")
    for args in (["apply", str(file)], ["service", "delete", "203.0.113.10:80"], ["confirm"]):
        ended = live(*args, "--if-revision", "1")
        assert (ended.code, ended.out) == ((7, "") if args != ["confirm"] else (1, ""))
    assert (
        "this is revision 2, not 1: somebody changed it meanwhile" in live("apply", str(file), "--if-revision", "1").err
    )
    assert director.revision == 2
    assert live("apply", str(file), "--if-revision", "2").code == 0
    with pytest.raises(ConflictError):
        Client(client.path, revision=2).clear()


def test_apply_can_wait_for_its_confirmation(live: Command, director: FakeDirector, file: Path) -> None:
    assert live("apply", str(file), "--confirm-within", "1m").out.splitlines()[-2:] == [
        "applied: revision 2",
        "it goes back in 60 s; keep it by `nfqlb confirm`",
    ]
    refused = live("service", "delete", "203.0.113.10:80")
    assert (refused.code, "revision 2 waits to be confirmed" in refused.err) == (7, True)
    assert live("confirm") == (0, "revision 2 stays\n", "")
    assert director.intent() == AFTER
    assert live("rollback").code == 1


def test_one_can_go_back_at_once(live: Command, director: FakeDirector, file: Path) -> None:
    live("apply", str(file), "--confirm-within", "60")
    assert live("rollback") == (0, "revision 3 is as it was before\n", "")
    assert director.intent() == Intent((WEB, DNS))


@pytest.mark.parametrize("time", ["0.5x", "x", "2d", "0", "0s", "", "9" * 5000])
def test_a_time_to_confirm_that_cannot_be(live: Command, director: FakeDirector, file: Path, time: str) -> None:
    assert live("apply", str(file), "--confirm-within", time).code == 2
    assert director.revision == 1


@pytest.mark.parametrize("text", ["", "\n# nothing yet\n", "[timeouts]\nudp = 30\n"])
def test_a_file_without_a_word_on_services_deletes_none(
    live: Command, director: FakeDirector, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "blank.toml"
    file.write_text(text)
    said = f"config '{file}': says nothing of services; write [[service]], or service = [] to delete every service"
    assert live("apply", str(file)) == (2, "", f"nfqlb: {said}\n")
    director.config = RunConfig(api="/run/nfqlb/main/api.sock", origin=str(file))
    assert live("reload") == (2, "", f"nfqlb: {said}\n")
    assert director.revision == 1
    file.write_text(f"service = []\n{text}")
    assert live("apply", str(file)).code == 0
    assert director.intent().services == ()


def test_reload_reads_the_file_of_the_start(live: Command, director: FakeDirector, file: Path) -> None:
    refused = live("reload")
    assert (refused.code, refused.err) == (
        2,
        "nfqlb: reload 'main': was not started with a file; use `nfqlb apply FILE`\n",
    )
    director.config = RunConfig(api="/run/nfqlb/main/api.sock", origin=str(file))
    assert live("reload") == (0, STEPS + "applied: revision 2\n", "")
    file.write_text("[[service]]\nvip = 1\n[timeouts]\nudp = 0\n")
    assert len(live("reload").err.splitlines()) == 2
    assert director.intent() == AFTER


def test_what_is_exported_is_applied_as_nothing_to_do(live: Command, tmp_path: Path) -> None:
    file = tmp_path / "now.toml"
    printed = live("export")
    assert live("export", str(file)) == (0, "", "")
    assert file.read_text() == printed.out
    assert live("apply", str(file)) == (0, "nothing to do: revision 1 is that already\n", "")
    assert live("export", str(tmp_path / "no" / "now.toml")).code == 2


def test_export_writes_through_what_is_no_file_of_its_own(
    live: Command, director: FakeDirector, tmp_path: Path
) -> None:
    text = live("export").out
    assert live("export", "-") == (0, text, "")
    file, link, pipe = tmp_path / "now.toml", tmp_path / "link", tmp_path / "pipe"
    file.write_text("")
    file.chmod(0o640)
    link.symlink_to(file)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with open(reader, "rb") as read:
        assert live("export", str(pipe)).code == live("export", str(link)).code == 0
        assert read.read() == text.encode()
    assert (pipe.is_fifo(), link.is_symlink(), file.read_text()) == (True, True, text)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_file_that_is_replaced_keeps_its_owner(live: Command, tmp_path: Path) -> None:
    file = tmp_path / "now.toml"
    file.write_text("")
    os.chown(file, 4711, 4712)
    assert live("export", str(file)).code == 0
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_size > 0) == (4711, 4712, True)


@pytest.mark.parametrize(("options", "mode"), [(Options(), 0o644), (Options(hash_key="0" * 32), 0o600)])
def test_a_new_file_with_a_key_is_its_owners(
    live: Command, director: FakeDirector, tmp_path: Path, options: Options, mode: int
) -> None:
    director.state = replace(director.state, intent=replace(director.intent(), options=options))
    file = tmp_path / "now.toml"
    assert live("export", str(file)).code == 0
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_what_comes_by_the_standard_input_is_applied(live: Command, director: FakeDirector, file: Path) -> None:
    kept = os.dup(0)
    try:
        with file.open() as source:
            os.dup2(source.fileno(), 0)
        assert live("apply", "-").out.endswith("applied: revision 2\n")
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert director.intent() == AFTER


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[timeouts]\nudp = " + "9" * 5000, "has a number of thousands of digits"),
        ("a = " + "[" * 5000, "is nested too deeply"),
    ],
)
def test_a_file_that_no_parser_takes_is_refused(live: Command, tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    assert live("apply", str(file)) == (2, "", f"nfqlb: config '{file}': {problem}\n")


def test_no_name_is_no_folder_and_a_byte_order_mark_is_none_of_the_text(
    live: Command, director: FakeDirector, tmp_path: Path
) -> None:
    assert live("apply", "") == (2, "", "nfqlb: config '': is no name of a file\n")
    file = tmp_path / "marked.toml"
    file.write_bytes(b"\xef\xbb\xbfservice = []\n")
    assert live("apply", str(file)).code == 0
    assert director.intent().services == ()


@pytest.mark.parametrize("environ", [{"NFQLB_API": ""}, {"NFQLB_NAME": "other"}])
def test_apply_finds_the_director_as_run_does(
    capsys: pytest.CaptureFixture[str], client: Client, tmp_path: Path, environ: dict[str, str]
) -> None:
    file = tmp_path / "named.toml"
    file.write_text(f'service = []\n[director]\nname = "web"\napi = "{client.path}"\n')
    assert Command(capsys, **environ)("apply", "--plan", str(file)).code == 0
    file.write_text('service = []\n[director]\nname = "web"\n')
    ended = Command(capsys, **environ)("apply", "--plan", str(file))
    assert f"/run/nfqlb/{environ.get('NFQLB_NAME', 'web')}/api.sock" in ended.err


@settings(max_examples=EXAMPLES // 4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(intents())
def test_whatever_is_exported_reads_back_identical(live: Command, director: FakeDirector, intent: Intent) -> None:
    director.state = replace(director.state, intent=intent)
    exported = live("export").out
    assert loads(exported, "now.toml") == Loaded({"workers": 2}, intent)


def test_answers_and_settings_are_exported(live: Command, director: FakeDirector) -> None:
    director.state = replace(director.state, intent=Intent(answers=Answers(no_server="drop")), vip_dev="eth0")
    assert live("export").out == (
        'service = []\n\n[director]\nvip_dev = "eth0"\nworkers = 2\n\n[answers]\nno_server = "drop"\n'
    )


def test_events_are_told(live: Command, director: FakeDirector, file: Path) -> None:
    live("apply", str(file), "--confirm-within", "60")
    live("confirm")
    lines = live("events").out.splitlines()
    assert [line.partition(" ")[2][9:] for line in lines] == [
        "waits: revision 2 goes back in 60 s unless it is confirmed",
        "confirmed: revision 2 is confirmed",
    ]
    first, second = map(json.loads, live("events", "--json").out.splitlines())
    assert (first["kind"], first["revision"], second["number"]) == ("waits", 2, first["number"] + 1)
    assert json.loads(live("events", "--json", "--since", str(first["number"])).out) == second


def test_events_can_be_followed(client: Client, director: FakeDirector) -> None:
    director.feed.say("real", "10.0.1.11 is not reached")
    listening = client.events(follow=20)
    assert next(listening)["message"] == "10.0.1.11 is not reached"
    director.feed.say("real", "10.0.1.11 is reached again")
    assert next(listening)["message"] == "10.0.1.11 is reached again"
    listening.close()
    until(lambda: not director.feed._listeners, 20, lambda: "who went away is kept until the next event")


def test_set_shows_and_changes_what_holds_for_all_services(live: Command, director: FakeDirector) -> None:
    shown = live("set").out.splitlines()
    assert {"timeouts.tcp = 900", 'answers.no_server = "icmp"', "options.conn_reuse_mode = 3"} <= set(shown)
    assert live("set", "timeouts.udp=9", "answers.sloppy_tcp=yes", "options.conn_reuse_mode=1") == (
        0,
        "~ timeouts udp 300 -> 9\n~ answers sloppy_tcp no -> yes\n~ options conn_reuse_mode 3 -> 1\n"
        "applied: revision 2\n",
        "",
    )
    assert director.intent() == Intent((WEB, DNS), Timeouts(udp=9), Answers(sloppy_tcp=True), Options(1))
    assert json.loads(live("set", "--json").out)["options"]["conn_reuse_mode"] == 1


def test_set_leaves_connection_sync_as_it_is(live: Command, director: FakeDirector) -> None:
    sync = Sync(peers=("10.9.0.2",))
    director.state = replace(director.state, intent=replace(director.intent(), sync=sync))
    assert live("set", "timeouts.udp=9").code == 0
    assert director.intent().sync == sync


def test_a_secret_is_in_no_plan_and_no_event(live: Command, director: FakeDirector, client: Client) -> None:
    for key in ("a" * 32, "b" * 32):
        ended = live("set", f"options.hash_key={key}", "--json")
        change = json.loads(ended.out)["steps"][0]["changes"]["hash_key"]
        assert (change[1], key in ended.out) == ("(secret)", False)
    assert "hash_key (secret) -> (secret)" in live("set", f"options.hash_key={'c' * 32}").out
    assert director.intent().options.hash_key == "c" * 32


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("udp=9", "set 'udp=9': is no setting; write TABLE.KEY=VALUE, TABLE one of timeouts, answers, options"),
        ("timeouts.icmp=9", "set 'timeouts.icmp': is not known; the keys of timeouts are "),
        ("timeouts.udp=9w", "timeouts.udp '9w': is not a time; write 90, 90s, 5m, 2h or 1d"),
        ("timeouts.udp=" + "9" * 5000, "timeouts.udp '" + "9" * 5000 + "': is too long; use at most 10 digits"),
        ("options.drop_entry=1_0", "options.drop_entry '1_0': is not a whole number"),
        ("options.conn_reuse_mode=2", "set 'options.conn_reuse_mode=2': is there twice; give each value once"),
        ("timeouts.udp=0", "timeout udp '0': out of range; use 1 to 2147483 seconds"),
        ("answers.sloppy_tcp=1", "answers.sloppy_tcp '1': is neither yes nor no"),
    ],
)
def test_a_wrong_setting_changes_nothing(live: Command, director: FakeDirector, setting: str, sentence: str) -> None:
    ended = live("set", "options.conn_reuse_mode=1", setting)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"nfqlb: {sentence}")
    assert director.revision == 1
