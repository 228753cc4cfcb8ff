"""What is installed: pyproject.toml, constraints.txt, environment.yml and the Makefile agree."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import segresmamba
from segresmamba.config import presets
from segresmamba.ops.dispatch import INSTALL_COMMANDS
from segresmamba.view import niivue

REPOSITORY = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Built for the GPU at hand, so not pinned with the rest.
UNPINNED = {"gpu"}
PINS = [
    line
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
]


def requirements(*extras: str) -> list[Requirement]:
    """Direct dependencies, those of the extras and of the build."""
    lines = PROJECT["dependencies"] + PYPROJECT["build-system"]["requires"]
    return [Requirement(line) for line in sum((EXTRAS[extra] for extra in extras), lines)]


def test_the_extras_are_the_documented_ones() -> None:
    documented = {"bench", "export", "gpu", "postgresql", "rivals", "sample", "test", "dev", "docs"}
    assert set(EXTRAS) == documented
    assert PROJECT["requires-python"] == ">=3.11"


def test_constraints_are_plain_exact_pins() -> None:
    assert [
        pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin)
    ] == []
    names = [canonicalize_name(pin.split("==")[0]) for pin in PINS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "requirement", requirements(*sorted(set(EXTRAS) - UNPINNED)), ids=lambda r: r.name
)
def test_every_direct_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    versions = {canonicalize_name(name): v for name, v in (pin.split("==") for pin in PINS)}
    assert Version(versions[canonicalize_name(requirement.name)]) in requirement.specifier


def test_the_build_tools_of_the_makefile_are_pinned() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    tools = re.search(r"^BUILD_TOOLS := (.*)$", makefile, re.MULTILINE)
    assert tools is not None
    names = {pin.split("==")[0] for pin in PINS}
    assert set(tools.group(1).split()) <= names


def test_the_conda_environment_agrees_with_pyproject() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    python = next(line for line in conda if line.startswith("python="))
    version = Version(python.removeprefix("python="))
    assert version in SpecifierSet(PROJECT["requires-python"])
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    constraints, install = pip["pip"]
    assert constraints == "-c constraints.txt"
    editable = re.fullmatch(r"-e \.\[(.*)\]", install)
    assert editable is not None
    assert set(editable.group(1).split(",")) == set(EXTRAS) - UNPINNED


def test_both_ways_to_build_the_gpu_kernels_have_the_flags_of_the_doctors_command() -> None:
    flags = set(re.findall(r"(\w+)=TRUE", INSTALL_COMMANDS["mamba_ssm"]))
    environment = (REPOSITORY / "environment.yml").read_text()
    assert yaml.safe_load(environment)["variables"] == dict.fromkeys(flags, "TRUE")
    assert "pip install -c constraints.txt --no-build-isolation -e .[gpu]" in environment
    script = (REPOSITORY / "containers" / "install.sh").read_text()
    assert set(re.findall(r"(\w+)=TRUE", script)) == flags
    built = {requirement.name for requirement in map(Requirement, EXTRAS["gpu"])} - {"triton"}
    assert (
        f"--no-binary {','.join(sorted(built))} \\\n        {' '.join(sorted(built))}\n" in script
    )


def test_both_containers_are_one_installation_from_the_constraints(tmp_path: Path) -> None:
    folder = REPOSITORY / "containers"
    docker, apptainer = (folder / name for name in ("Dockerfile", "segresmamba.def"))
    script = (folder / "install.sh").read_text()
    subprocess.run(["bash", "-n", str(folder / "install.sh")], check=True)
    assert "--constraint constraints.txt" in script
    (extras,) = re.findall(r"'\.\[(.*)\]'", script)
    assert set(extras.split(",")) == set(EXTRAS) - UNPINNED - {"test", "dev", "docs"}
    image = re.search(r"^From: nvidia/cuda:(.*)$", apptainer.read_text(), re.MULTILINE)
    assert image is not None
    assert f"ARG CUDA={image[1]}\n" in docker.read_text()
    for file in (docker, apptainer):
        assert "bash containers/install.sh" in file.read_text()
    # What Apptainer copies is enough to build the package.
    copied = re.findall(r"^ {4}(\S+) /opt/source/\1$", apptainer.read_text(), re.MULTILINE)
    for name in copied:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, tmp_path / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    assert "containers" in copied
    assert list((tmp_path / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the source distribution, by their endings."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    return {path.suffix: path for path in folder.iterdir()}


def test_the_index_would_take_the_packages(packages: dict[str, Path]) -> None:
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, packages.values())]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sources_have_no_data_and_no_caches(packages: dict[str, Path]) -> None:
    with tarfile.open(packages[".gz"]) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "CITATION.cff", "constraints.txt"} <= names
    assert {"segresmamba/__init__.py", "launch/__main__.py", "configs/config.yaml"} <= names
    top = {name.split("/")[0] for name in names}
    assert not top & {".venv", "data", "runs", "dist", "build", "site"}
    assert not {name for name in names if "__pycache__" in name}


def test_the_tools_before_a_commit_are_the_pinned_ones() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = (repo for repo in hooks if repo["repo"].endswith("/ruff-pre-commit"))
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in PINS


def test_the_citation_and_the_changelog_name_the_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == segresmamba.__version__
    assert citation["license"] == PROJECT["license"]
    assert f"## [{segresmamba.__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_a_wheel_carries_the_presets_and_the_commands(packages: dict[str, Path]) -> None:
    path = packages[".whl"]
    assert path.name.startswith(f"segresmamba-{segresmamba.__version__}-")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        commands = wheel.read(entry_points).decode()
    shipped = {f"{group}/{name}" for group, choices in presets().items() for name in choices}
    for preset in ("config", *shipped):
        assert f"segresmamba/configs/{preset}.yaml" in names
    assert {"launch/__main__.py", "segresmamba/cli/main.py"} <= names
    assert {"launch/py.typed", "segresmamba/py.typed"} <= names
    assert "segresmamba/report/templates/page.html.j2" in names
    page = {"page.html", "page.css", "page.js", "labels.js", "niivue-LICENSE.txt"}
    if niivue.SCRIPT.exists():  # a package carries it, with its licence, where it was built with it
        page.add(niivue.SCRIPT.name)
    assert {f"segresmamba/view/page/{name}" for name in page} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "launch",
        "segresmamba",
    }
    assert "segresmamba = segresmamba.cli.main:main" in commands
    assert "segresmamba-launch = launch.__main__:main" in commands


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_lists_its_commands() -> None:
    listed = [line.split()[1] for line in make().stdout.splitlines()]
    assert listed == ["help", "train", "test", "fuzz", "chaos", "lint", "docs", "clean"]


def test_an_old_python_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("train", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert done.returncode == 2
    assert f"error: {old} is not Python 3.11 or newer" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["python"]
