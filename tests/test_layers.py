"""The house rules: who may import whom, and how large a thing may grow."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted((SRC / "groundthink").rglob("*.py"))
LEVEL = {
    "errors": -1,
    **dict.fromkeys(("config", "records", "device", "dist"), 0),
    **dict.fromkeys(("ops", "data", "verdicts", "report"), 1),
    "layers": 2,
    "models": 3,
    **dict.fromkeys(("train", "diagnose", "eval", "bench"), 4),
    "lab": 5,
    "cli": 6,
    "__main__": 7,
}
KERNELS = ("triton.py",)
pytestmark = pytest.mark.tiny


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path, everywhere: bool) -> set[str]:
    """Modules of the package that a file imports (type-checking imports aside)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    nodes = ast.walk(tree) if everywhere else tree.body
    found = set()
    for node in nodes:
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES and name != "groundthink"}


def folder(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("name", [n for n in MODULES if n != "groundthink"])
def test_a_module_imports_only_lower_levels(name: str):
    for other in imports(MODULES[name], everywhere=True):
        same = folder(name) == folder(other)
        assert same or LEVEL[folder(other)] < LEVEL[folder(name)], f"{name} imports {other}"
    if folder(name) == "report":
        assert all(
            folder(o) in ("report", "errors", "config", "records")
            for o in imports(MODULES[name], True)
        )


def test_no_import_cycle():
    graph = {name: imports(path, everywhere=False) - {name} for name, path in MODULES.items()}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    TopologicalSorter(
        {n: {d for d in deps if d not in packages} for n, deps in graph.items()}
    ).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC / "groundthink")))
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text(encoding="utf-8")
    kernel = path.name in KERNELS
    assert text.count("\n") <= (500 if kernel else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and not kernel:
            assert node.end_lineno - node.lineno < 60, (
                f"{node.name} is {node.end_lineno - node.lineno} lines"
            )


def test_the_command_line_starts_without_torch():
    import subprocess
    import sys

    code = "import sys, groundthink.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
