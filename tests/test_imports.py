"""The direction of imports between rooms, read from the source."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted([*REPOSITORY.glob("segresmamba/**/*.py"), *REPOSITORY.glob("launch/**/*.py")])

# Rooms from the ground up: a room imports only rooms before it in this list, see
# docs/architecture.md.
ROOMS = (
    "build_tools", "redaction", "errors", "secrets", "config", "storage", "ops", "models",
    "tracking", "data",
    "task", "planner", "configure", "inference", "evaluation", "engine", "bench", "report",
    "view", "cli", "launch",
)  # fmt: skip
# Rooms that know nothing of each other, and rooms that know few.
APART = {
    "storage": {"errors", "secrets", "config"},
    "ops": {"build_tools", "errors"},
    "models": {"ops", "config", "errors"},
    "tracking": {"storage", "config", "secrets", "errors"},
    "data": {"storage", "config", "secrets", "errors", "redaction"},
    "report": {"tracking", "storage", "config", "errors"},
}
# Rooms within a room, and those beside them that they may import.
SUBROOMS = {
    "data.volumes": set(),
    "data.formats": {"data.volumes"},
    "data.store": {"data.volumes"},
    "data.conversion": {"data.formats", "data.store", "data.volumes"},
    "data.stream": {"data.store"},
    "tracking.energy": set(),
    "tracking.mlflow": {"tracking.energy"},
    "engine.checkpoints": set(),
    "ops.cpu": set(),
    "ops.triton": set(),
    "launch.slurm": set(),
    "launch.jobs": {"launch.slurm"},
    "launch.in_allocation": {"launch.jobs", "launch.slurm"},
    "launch.sweeps": {"launch.jobs", "launch.slurm"},
}
# Libraries that are imported inside one folder only, so that there is one place to change.
ONE_FOLDER = {
    "deepspeed": "engine",
    "mlflow": "tracking.mlflow",
    "submitit": "launch.jobs",
    "codecarbon": "tracking.energy",
    "optuna": "launch.sweeps",
}


def room_of(module: str) -> str | None:
    """The room that a dotted module name lies in; None outside the rooms."""
    room = module.removeprefix("segresmamba.").split(".")[0]
    return room if room in ROOMS else None


def subroom_of(module: str) -> str | None:
    """The room within a room that a dotted module name lies in."""
    subroom = ".".join(module.removeprefix("segresmamba.").split(".")[:2])
    return subroom if subroom in SUBROOMS else None


def module_of(path: Path) -> str:
    relative = path.relative_to(REPOSITORY).with_suffix("")
    return ".".join(relative.parts).removesuffix(".__init__")


@cache  # each test below looks at all files
def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, at any depth, type checking included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_room_has_its_place() -> None:
    roomless = {module_of(path) for path in SOURCES if room_of(module_of(path)) is None}
    assert roomless == {"segresmamba"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_lies_below(room: str) -> None:
    below = APART.get(room, set(ROOMS[: ROOMS.index(room)]))
    upward = [
        f"{module_of(path)} imports {imported}"
        for path in SOURCES
        if room_of(module_of(path)) == room
        for imported in imports_of(path)
        if room_of(imported) not in {None, room, *below}
    ]
    assert not upward


def test_every_folder_within_a_room_has_its_place() -> None:
    folders = {module_of(path.parent) for path in SOURCES if len(path.parents) > 0}
    nested = {name.removeprefix("segresmamba.") for name in folders if room_of(name)} - set(ROOMS)
    assert nested == set(SUBROOMS)


@pytest.mark.parametrize("subroom", SUBROOMS)
def test_a_room_within_a_room_imports_only_those_below_it(subroom: str) -> None:
    sideways = [
        f"{module_of(path)} imports {imported}"
        for path in SOURCES
        if subroom_of(module_of(path)) == subroom
        for imported in imports_of(path)
        if room_of(imported) == room_of(subroom)
        and subroom_of(imported) not in {None, subroom, *SUBROOMS[subroom]}
    ]
    assert not sideways


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {module_of(path) for path in SOURCES}
    graph = {
        module_of(path): {
            name
            for imported in imports_of(path)
            for name in (imported, imported.rpartition(".")[0])
            if name in modules and name != module_of(path)
        }
        for path in SOURCES
        # A package's own file gathers what its modules offer, and is not imported by them.
        if path.name != "__init__.py"
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("library", ONE_FOLDER)
def test_a_library_is_imported_inside_one_folder(library: str) -> None:
    importers = {
        module_of(path)
        for path in SOURCES
        for imported in imports_of(path)
        if imported.split(".")[0] == library
    }
    places = {module.removeprefix("segresmamba.").rpartition(".")[0] for module in importers}
    assert places == {ONE_FOLDER[library]}


def test_the_reader_of_imports_sees_nested_ones(tmp_path: Path) -> None:
    source = tmp_path / "example.py"
    source.write_text("import a.b\ndef f():\n    from c.d import e, f\n")
    assert list(imports_of(source)) == ["a.b", "c.d.e", "c.d.f"]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, segresmamba; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_first_step_imports_no_slow_library_that_it_does_not_need() -> None:
    code = (
        "import sys; from pathlib import Path; import torch\n"
        "from segresmamba.engine import trainer, zero\n"
        "from segresmamba.models import SegResMamba\n"
        "from tests.engine.tiny import tiny_config\n"
        "ranks = trainer.Ranks.from_environment()\n"
        "trainer.join(ranks, threads=1)\n"
        "config = tiny_config(Path(), Path(), 'train.zero_stage=0')\n"
        "engine = zero.ZeroEngine(SegResMamba(dims=(8, 8), d_state=4), config, ranks)\n"
        "for _ in range(2):\n"
        "    loss = engine.forward(torch.randn(1, 1, 16, 16, 16)).square().mean()\n"
        "    engine.backward(loss, 1e-3)\n"
        "print(*sys.modules)\n"
        "import mlflow  # which DeepSpeed did not see\n"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    slow = {"monai", "mlflow", "matplotlib", "pandas", "torch._dynamo", "nibabel", "pydicom"}
    assert slow.isdisjoint(result.stdout.decode().split())
