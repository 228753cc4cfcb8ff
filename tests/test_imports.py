"""The direction of imports between rooms, read from the source."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted([*REPOSITORY.glob("segresmamba/**/*.py"), *REPOSITORY.glob("launch/**/*.py")])

# Each room and the rooms that it may import; see docs/architecture.md.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "ops": {"config", "errors"},
    "models": {"ops", "config", "errors"},
    "data": {"config", "errors"},
    "tracking": {"config", "errors"},
    "report": {"tracking", "config", "errors"},
    "engine": {"models", "ops", "data", "tracking", "config", "errors"},
    "cli": {"report", "engine", "models", "ops", "data", "tracking", "config", "errors"},
    "launch": {"cli", "report", "engine", "models", "ops", "data", "tracking", "config", "errors"},
}
# Libraries that one module alone may import, so that there is one place to change.
ONE_MODULE = ("deepspeed", "mlflow", "submitit", "codecarbon", "optuna")


def room_of(module: str) -> str | None:
    """The room that a dotted module name lies in; None outside the rooms."""
    room = module.removeprefix("segresmamba.").split(".")[0]
    return room if room in MAY_IMPORT else None


def module_of(path: Path) -> str:
    relative = path.relative_to(REPOSITORY).with_suffix("")
    return ".".join(relative.parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth, type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_its_place() -> None:
    roomless = {module_of(path) for path in SOURCES if room_of(module_of(path)) is None}
    assert roomless == {"segresmamba"}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below(room: str) -> None:
    upward = [
        f"{module_of(path)} imports {imported}"
        for path in SOURCES
        if room_of(module_of(path)) == room
        for imported in imports_of(path)
        if room_of(imported) not in {None, room, *MAY_IMPORT[room]}
    ]
    assert not upward


@pytest.mark.parametrize("library", ONE_MODULE)
def test_a_library_is_imported_by_one_module(library: str) -> None:
    importers = defaultdict(set)
    for path in SOURCES:
        for imported in imports_of(path):
            importers[imported.split(".")[0]].add(module_of(path))
    assert len(importers[library]) == 1, importers[library]


def test_the_reader_of_imports_sees_nested_ones(tmp_path: Path) -> None:
    source = tmp_path / "example.py"
    source.write_text("import a.b\ndef f():\n    from c.d import e, f\n")
    assert list(imports_of(source)) == ["a.b", "c.d.e", "c.d.f"]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, segresmamba; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
