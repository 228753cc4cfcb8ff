"""Run the networks one after another, each in its own process, and keep what each left behind."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from segresmamba.bench.memory import default_limit_gib
from segresmamba.bench.picture import draw
from segresmamba.bench.report import results_table, write_csv, write_markdown
from segresmamba.bench.result import Result, Setting
from segresmamba.bench.worker import RESULT_NAME, BenchRequest
from segresmamba.config import Config, load_config, presets
from segresmamba.errors import ConfigError, UserError
from segresmamba.planner.out_of_memory import says_ran_out
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import environment_of_one
from segresmamba.task.task import Task
from segresmamba.tracking import open_tracker

logger = logging.getLogger(__name__)

LOG_NAME = "bench.log"
# Sizes that every network takes and the device holds; overrides come after them and win.
_DEFAULTS = {
    "cpu": ("data.patch=[64,64,64]", "train.precision=fp32"),
    "cuda": ("data.patch=[128,128,128]", "train.precision=bf16"),
}
_STEPS = {"cpu": 3, "cuda": 20}
_ABOUT_THE_STORE = ("data=", "data.store=", "train.fold=")
_PACKAGES = ("torch", "monai", "deepspeed", "numba", "triton", "mamba-ssm")


@dataclass(frozen=True)
class Bench:
    """A finished comparison."""

    results: list[Result]
    files: list[Path]
    """CSV, Markdown and, if anything was timed, the picture."""
    table: Table
    """The results for a terminal."""
    ui_hint: str
    """The command or URL that compares the runs in MLflow."""


def bench(
    models: Sequence[str],
    overrides: Sequence[str],
    *,
    out: Path,
    steps: int | None = None,
    memory_gib: float | None = None,
) -> Bench:
    """Measure networks and write networks_<device>.csv, .md and .png.

    The files are written anew after each network, so an interruption keeps what is finished.

    Args:
        models: Names of presets under configs/model.
        overrides: Of the configuration that all of them share.
        out: Folder of the files.
        steps: Training steps to time; None takes 3 on a CPU and 20 on a GPU.
        memory_gib: Limit for each network: of its process on a CPU (None: nine tenths of what is
            free now), of its tensors on a GPU (None: all there is).

    Raises:
        UserError: Before anything runs, for settings or a store that cannot be used.
        KeyboardInterrupt: As it comes, when the files are written.
    """
    device = "cuda" if torch.cuda.device_count() else "cpu"
    configs = _configurations(models, overrides, device)
    data, with_store = _data(configs[models[0]], overrides)
    steps = steps or _STEPS[device]
    if memory_gib is None and device == "cpu":
        memory_gib = default_limit_gib()
    setting = _setting(configs[models[0]], device, steps, data)
    _make_folder(out)
    stem, results, ui_hint = out / f"networks_{device}", list[Result](), ""
    for model, config in configs.items():
        folder = RunFolder.from_config(config)
        folder.enter(config)
        result = _run(folder.path, BenchRequest(model, steps, memory_gib, with_store))
        results.append(result)
        files = _write(stem, results, setting)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        logger.info("%s: %s", model, _summary(result))
        ui_hint = _track(config, folder, result, setting)
    return Bench(results, files, results_table(results, setting), ui_hint)


def _configurations(
    models: Sequence[str], overrides: Sequence[str], device: str
) -> dict[str, Config]:
    """A run for each model; all are validated before the first one starts."""
    if chosen := [word for word in overrides if word.startswith("model=")]:
        raise ConfigError(
            "a benchmark takes its networks from --models",
            where="model",
            got=chosen[0],
            remedy=f"write --models {chosen[0].partition('=')[2]}",
        )
    defaults = ["train.batch_size=1", "tracking.experiment=segresmamba-bench", *_DEFAULTS[device]]
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return {
        model: load_config(
            [*defaults, *overrides, f"model={model}", f"run.name=bench-{stamp}-{model}"]
        )
        for model in models
    }


def _data(config: Config, overrides: Sequence[str]) -> tuple[str, bool]:
    """The store to read, if there is one; a store that was asked for has to be usable."""
    try:
        Task.from_config(config)
    except UserError as error:
        if any(word.startswith(_ABOUT_THE_STORE) for word in overrides):
            raise
        logger.warning("no loading is measured: %s: %s", error.problem, error.where)
        return f"synthetic only ({error.problem})", False
    return config.data.store, True


def _setting(config: Config, device: str, steps: int, data: str) -> Setting:
    return Setting(
        device=_machine(device, config.train.threads),
        patch=config.data.patch,
        batch_size=config.train.batch_size,
        precision=config.train.precision,
        steps=steps,
        data=data,
        versions=", ".join([f"Python {platform.python_version()}", *_versions()]),
    )


def _machine(device: str, threads: int | None) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    count = threads or len(os.sched_getaffinity(0))
    return f"{named[0] if named else platform.processor()}, {count} threads"


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "the results cannot be written",
            where=out,
            got=error.strerror,
            remedy="give a folder that can be made with --out",
        ) from error


def _run(folder: Path, request: BenchRequest) -> Result:
    """Start the worker and wait; what it left, and how it ended."""
    command = [sys.executable, "-m", "segresmamba.bench.worker", str(folder)]
    with (folder / LOG_NAME).open("wb") as log:
        process = subprocess.Popen(
            [*command, json.dumps(asdict(request))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment_of_one(),
            process_group=0,
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            code = None
        finally:
            _end_group(process)
    path = folder / RESULT_NAME
    result = Result.load(path) if path.exists() else Result(request.model)
    if code is None:
        result.status, result.note = "interrupted", "stopped by the user"
    elif code:
        result.status, result.note = _verdict(code, (folder / LOG_NAME).read_text(errors="replace"))
    return result


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a worker with its readers, which would outlive it if it was killed."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _verdict(code: int, log: str) -> tuple[Any, str]:
    """Status and note of a process that ended without writing why."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "it wrote nothing"
    if code == -signal.SIGKILL:
        return "out of memory", "killed by SIGKILL, as the kernel does when memory runs out"
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if says_ran_out(log[-10_000:]):
        return "out of memory", f"{how}: {last}"
    return "failed", f"{how}: {last}"


def _write(stem: Path, results: Sequence[Result], setting: Setting) -> list[Path]:
    files = [stem.with_suffix(".csv"), stem.with_suffix(".md"), stem.with_suffix(".png")]
    write_csv(files[0], results, setting)
    write_markdown(files[1], results, setting)
    return files if draw(files[2], results, setting) else files[:2]


def _summary(result: Result) -> str:
    if result.status != "ok":
        return f"{result.status}: {result.note}"
    return f"{result.step_s:.3g} s a step, peak {result.peak_gib or math.nan:.3g} GiB"


def _track(config: Config, folder: RunFolder, result: Result, setting: Setting) -> str:
    """One MLflow run; the hint that shows it."""
    tracker = open_tracker(
        folder.path, config.tracking, root=config.run.root, run_name=folder.path.name
    )
    values = asdict(result)
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    texts = {key: value for key, value in values.items() if isinstance(value, str) and value}
    tracker.params(config.model_dump(mode="json") | {"bench": {"steps": setting.steps}})
    tracker.tags(texts | {"device": setting.device, "versions": setting.versions})
    tracker.metrics({f"bench/{key}": value for key, value in numbers.items()}, step=0)
    tracker.artifact(folder.config)
    tracker.close("finished" if result.status == "ok" else "failed")
    return tracker.ui_hint()


def default_models() -> list[str]:
    """Every preset of a network at full size."""
    return [name for name in presets()["model"] if not name.endswith("_small")]
