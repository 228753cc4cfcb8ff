"""Run the networks one after the other, each in its own process, and collect their results.

A process of its own keeps a network that runs out of memory, or crashes, from taking the others
with it, and the memory of one from counting for the next.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from segresmamba.bench.memory import default_limit_gib
from segresmamba.bench.report import results_table, write_csv, write_markdown
from segresmamba.bench.result import Result, Setting, Status
from segresmamba.bench.worker import RESULT_NAME, Measurement
from segresmamba.config import Config, load_config, presets
from segresmamba.errors import ConfigError, UserError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.memory_errors import says_ran_out
from segresmamba.task.ranks import environment_of_one
from segresmamba.task.task import Task
from segresmamba.tracking import open_tracker

logger = logging.getLogger(__name__)

LOG_NAME = "bench.log"
# Sizes that every network takes and the device can hold; the user's overrides come after them.
_DEFAULTS = {
    "cpu": ("data.patch=[64,64,64]", "train.precision=fp32"),
    "cuda": ("data.patch=[128,128,128]", "train.precision=bf16"),
}
_STEPS = {"cpu": 3, "cuda": 20}
_STORE_KEYS = ("data=", "data.store=", "train.fold=")
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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Bench:
    """Measure networks and write networks_<device>.csv, .md and .png.

    The files are written again after each network, so an interruption keeps what is finished.

    Args:
        models: Names of presets under configs/model.
        overrides: Overrides of the configuration, for all networks.
        out: Folder of the files.
        steps: Training steps to time; None takes 3 on a CPU and 20 on a GPU.
        memory_gib: Limit for each network: for its process on a CPU (None: nine tenths of what is
            free now), for its tensors on a GPU (None: no limit).
        progress: Called with the number of finished networks and that of all networks.

    Raises:
        UserError: Before anything runs, for settings or a store that cannot be used.
        KeyboardInterrupt: On Ctrl-C, when the files are written.
    """
    from segresmamba.bench.picture import draw  # matplotlib, which a worker does not need

    on_cpu = "train.device=cpu" in overrides or not torch.cuda.device_count()
    device = "cpu" if on_cpu else "cuda"
    configs = _configurations(models, overrides, device)
    config = configs[models[0]]  # what differs between networks does not matter here
    data, with_store = _data(config, overrides)
    steps = steps or _STEPS[device]
    if memory_gib is None and device == "cpu":
        memory_gib = default_limit_gib()
    setting = _setting(config, device, steps, data)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "the results cannot be written",
            where=out,
            got=error.strerror,
            remedy="give a folder that can be made with --out",
        ) from error
    stem, results, ui_hint = out / f"networks_{device}", list[Result](), ""
    files = [stem.with_suffix(".csv"), stem.with_suffix(".md")]
    progress(0, len(configs))
    for model, config in configs.items():
        folder = RunFolder.from_config(config)
        folder.enter(config)
        results.append(_run(folder, Measurement(model, steps, memory_gib, with_store)))
        write_csv(files[0], results, setting)
        write_markdown(files[1], results, setting)
        has_picture = draw(stem.with_suffix(".png"), results, setting)
        if results[-1].status == "interrupted":
            raise KeyboardInterrupt
        logger.info("%s: %s", model, results[-1].summary)
        ui_hint = _track(config, folder, results[-1], setting)
        progress(len(results), len(configs))
    files += [stem.with_suffix(".png")] if has_picture else []
    return Bench(results, files, results_table(results, setting), ui_hint)


def _configurations(
    models: Sequence[str], overrides: Sequence[str], device: str
) -> dict[str, Config]:
    """The configuration of each model's run; all are validated before the first run starts."""
    if chosen := [override for override in overrides if override.startswith("model=")]:
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
    """The store to read, or why there is none, and whether there is one.

    A store is optional unless the user names one: then it has to be usable.
    """
    try:
        Task.from_config(config)
    except UserError as error:
        if any(override.startswith(_STORE_KEYS) for override in overrides):
            raise
        logger.warning("no loading is measured: %s: %s", error.problem, error.where)
        return f"synthetic only ({error.problem})", False
    return config.data.store, True


def _setting(config: Config, device: str, steps: int, data: str) -> Setting:
    if device == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        threads = config.train.threads or len(os.sched_getaffinity(0))
        machine = f"{names[0] if names else platform.processor()}, {threads} threads"
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return Setting(
        device=machine,
        patch=config.data.patch,
        batch_size=config.train.batch_size,
        precision=config.train.precision,
        steps=steps,
        data=data,
        versions=", ".join(versions),
    )


def _run(folder: RunFolder, measurement: Measurement) -> Result:
    """Start the worker, wait for it, and read what it wrote and how it ended."""
    command = [sys.executable, "-m", "segresmamba.bench.worker", str(folder.path)]
    log_path = folder.path / LOG_NAME
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, json.dumps(asdict(measurement))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment_of_one(),  # the benchmark may run inside a rank of some job
            process_group=0,  # so that the worker and its readers can be ended together
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            code = None
        finally:
            # The whole group: a worker that was killed leaves its data readers running.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    path = folder.path / RESULT_NAME
    result = Result.load(path) if path.exists() else Result(measurement.model)
    if code is None:
        result.status, result.note = "interrupted", "stopped by the user"
    elif code:
        result.status, result.note = _verdict(code, log_path.read_text(errors="replace"))
    return result


def _verdict(code: int, log: str) -> tuple[Status, str]:
    """Status and note of a process that ended without writing a reason into its result."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "it wrote nothing"
    if code == -signal.SIGKILL:
        return "out of memory", "killed by SIGKILL, as the kernel does when memory runs out"
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if says_ran_out(log[-10_000:]):
        return "out of memory", f"{how}: {last}"
    return "failed", f"{how}: {last}"


def _track(config: Config, folder: RunFolder, result: Result, setting: Setting) -> str:
    """Record a result as a run of MLflow, and return the hint that shows the run."""
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
    """The presets of all networks at full size."""
    return [name for name in presets()["model"] if not name.endswith("_small")]
