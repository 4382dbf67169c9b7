"""What the tree looks like: nothing in the root that was not agreed, no loose ends, a docstring in every module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AGREED = {".ci", ".git", ".gitignore", "Makefile", "pyproject.toml", "setup.py", "LICENSE"}
AGREED |= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "bench", "docs", "ext", "netns", "src", "systemd", "tests"}
IGNORED = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]


def ignored(path: Path) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in IGNORED)


def files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name != ".git" and not ignored(path):
            if path.is_dir():
                yield from files(path)
            else:
                yield path


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


FILES = list(files(ROOT))
MODULES = [path for path in FILES if path.suffix in {".py", ".pyx", ".pxd"} and path.name != "__init__.pxd"]


def test_the_root_holds_what_was_agreed() -> None:
    assert {path.name for path in ROOT.iterdir() if not ignored(path)} <= AGREED


def test_nothing_is_left_to_do() -> None:
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    texts = [path for path in FILES if path.suffix in {".py", ".pyi", ".pyx", ".pxd", ".md", ".toml", ""}]
    assert [named(path) for path in texts if path.name != "LICENSE" and mark.search(path.read_text())] == []


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else text.startswith('"""')
