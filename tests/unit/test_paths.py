"""Where a director's files are."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfqlb.paths import Paths, api_socket, paths


def test_all_files_follow_from_the_name() -> None:
    assert paths("web", {}) == Paths(
        run=Path("/run/nfqlb/web"),
        api=Path("/run/nfqlb/web/api.sock"),
        lock=Path("/run/nfqlb/web/lock"),
        door=Path("/run/nfqlb/web/heir"),
        kernel=Path("/run/nfqlb/web/kernel.json"),
        state=Path("/var/lib/nfqlb/web/state.toml"),
        table=Path("/dev/shm/nfqlb-web"),
    )


def test_two_variables_move_the_folders() -> None:
    moved = paths("web", {"NFQLB_RUN_DIR": "/tmp/run", "NFQLB_STATE_DIR": "/tmp/state"})
    assert (moved.lock, moved.state) == (Path("/tmp/run/web/lock"), Path("/tmp/state/web/state.toml"))


def test_an_empty_variable_is_none() -> None:
    assert paths("web", {"NFQLB_RUN_DIR": "", "NFQLB_STATE_DIR": ""}) == paths("web", {})


@pytest.mark.parametrize("environ", [{}, {"NFQLB_RUN_DIR": "/tmp/run"}])
def test_the_socket_alone_is_the_same_socket(environ: dict[str, str]) -> None:
    assert api_socket("web", environ) == str(paths("web", environ).api)
