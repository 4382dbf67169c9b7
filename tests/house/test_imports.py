"""Who may import whom, where the contracts of import-linter (pyproject.toml, `make lint`) cannot say it.

They forbid by list and do not see compiled modules; here stand the lists of what is allowed.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
FACES = {"nfqlb.api.client", "nfqlb.cli", "nfqlb.config", "nfqlb.errors", "nfqlb.model"}
FACES |= {"nfqlb.paths", "nfqlb.runconfig"}
LOOK_AROUND = {  # commands about the machine that they run on
    "nfqlb.cli.real_server": {"nfqlb.kernel.realserver"},
    "nfqlb.cli.doctor": {"nfqlb.kernel.doctor", "nfqlb.kernel.queues"},
}
HOLDER = {"nfqlb.errors", "nfqlb.handover", "nfqlb.kernel.capabilities", "nfqlb.logs", "nfqlb.paths"}
USERS_OF_THE_CORE = {"nfqlb.advising", "nfqlb.aiming", "nfqlb.api", "nfqlb.control", "nfqlb.daemon", "nfqlb.director"}
USERS_OF_THE_CORE |= {"nfqlb.ha", "nfqlb.offloading", "nfqlb.reference", "nfqlb.testing", "nfqlb.upkeep"}
USERS_OF_THE_CORE |= {"nfqlb.worker"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(SRC.glob("nfqlb/**/*.py"))}


def imports(module: str) -> set[str]:
    """Every module that a file names in an import statement, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole in MODULES or node.module == "nfqlb._core"
                found.add(whole if is_module else str(node.module))
    return found


def below(name: str, roots: set[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


@pytest.mark.parametrize("module", [name for name in MODULES if below(name, {"nfqlb.cli"})])
def test_a_face_imports_the_client_and_plain_values(module: str) -> None:
    ours = {name for name in imports(module) if below(name, {"nfqlb"})}
    own = LOOK_AROUND.get(module, set())
    assert {name for name in ours if not below(name, FACES | own) and name != "nfqlb"} == set()


def test_the_holder_needs_the_standard_library_only() -> None:
    foreign = {name for name in imports("nfqlb.holder") if name.partition(".")[0] not in sys.stdlib_module_names}
    assert foreign <= HOLDER
    for module in foreign:
        assert {name.partition(".")[0] for name in imports(module)} <= sys.stdlib_module_names | {"nfqlb"}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "nfqlb._core"])
def test_the_core_is_used_by_few(module: str) -> None:
    core = {name for name in imports(module) if below(name, {"nfqlb._core"})}
    assert not core or below(module, USERS_OF_THE_CORE)
