"""The `segresmamba` command: each command parses its arguments, makes one call, prints the result.

Commands import what they call when they run, so that `--help` need not wait for torch.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from segresmamba.cli.conversion import (
    ConfigDir,
    CropPolicy,
    DtypePolicy,
    FormatName,
    IntensityPolicy,
    Overwrite,
    ResampleMismatched,
    SpacingPolicy,
    Splits,
    counting,
)
from segresmamba.cli.evaluate import evaluate
from segresmamba.cli.predict import predict
from segresmamba.cli.select import select
from segresmamba.cli.serve import serve
from segresmamba.cli.ship import export, import_model
from segresmamba.cli.version import Version
from segresmamba.cli.view import view
from segresmamba.errors import OUR_CODE, ConfigError, UserError, sort_error
from segresmamba.storage.terminal import on_stop_signals, shield_output

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)


@app.callback()
def _program(version: Version = False) -> None:
    """Train, evaluate and apply 3D segmentation networks."""


app.command()(export)
app.command("import")(import_model)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key=value, such as model=segresnet train.lr=3e-4."),
]
Run = Annotated[Path, typer.Argument(help="Run folder.")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Store = Annotated[str, typer.Argument(help="Converted dataset: a folder, a .zip file or a URL.")]


def main() -> None:
    """Run a command; all errors but our own are one screen of text, see `segresmamba.errors`."""
    shield_output()
    logging.captureWarnings(capture=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        datefmt="%H:%M:%S",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    # Libraries whose messages at level INFO would hide our own.
    for noisy in (
        "alembic", "mlflow", "codecarbon", "hydra", "numba", "matplotlib", "onnx_ir", "onnxscript",
    ):  # fmt: skip
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except Exception as error:
        code, text = sort_error(error)
        if code == OUR_CODE:
            raise
        sys.stderr.write(text + "\n")
        sys.exit(code)


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Folder for the dataset, in nnU-Net's raw format.")],
    subjects: Annotated[int, typer.Option(min=2, help="Number of virtual subjects.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of all that differs between them.")] = 0,
    kind: Annotated[
        str,
        typer.Option(
            help="brain: T1 at 2 mm; hemispheres: the same, left and right told apart; "
            "ct: abdomen at 0.8 x 0.8 x 5 mm, in HU."
        ),
    ] = "brain",
) -> None:
    """Make a sample dataset: virtual subjects of the MNI152 template, or of a drawn CT."""
    from segresmamba.data import make_sample

    make_sample(out, subjects=subjects, seed=seed, kind=kind)
    typer.echo(f"{subjects} subjects: {out}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Dataset folder, or a MONAI datalist.")],
    out: Annotated[Path, typer.Argument(help="Store to write.")],
    kind: FormatName = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 2,
    resample_mismatched: ResampleMismatched = False,
    spacing: SpacingPolicy = "keep",
    crop: CropPolicy = False,
    intensity: IntensityPolicy = "auto",
    dtype: DtypePolicy = "auto",
    splits: Splits = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a dataset to a sharded Zarr store; finished cases are not converted again."""
    from segresmamba.data import Policy
    from segresmamba.data import convert as run

    with counting("converting", console) as progress:
        result = run(
            source,
            out,
            format=kind,
            workers=workers,
            resample_mismatched=resample_mismatched,
            policy=Policy.from_options(
                spacing=spacing, crop=crop, intensity=intensity, dtype=dtype
            ),
            splits=splits,
            overwrite=overwrite,
            progress=progress,
        )
    typer.echo(str(result))


@app.command()
def verify(
    store: Store,
    fix: Annotated[bool, typer.Option("--fix", help="Convert the faulty cases again.")] = False,
    source: Annotated[
        Path | None, typer.Option(help="For --fix: the source dataset, if it has moved.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="For --fix: number of processes.")] = 1,
) -> None:
    """Read every case of a store and report what is wrong; --fix converts those cases again."""
    from segresmamba.data import repair
    from segresmamba.data import verify as run

    problems = repair(store, source=source, workers=workers) if fix else run(store)
    for problem in problems:
        typer.secho(str(problem), fg="red")
    typer.echo(f"{len(problems)} problems in {store}" if problems else f"{store} is sound")
    raise typer.Exit(1 if problems else 0)


@app.command()
def fingerprint(
    store: Store,
    out: OutFolder = Path("fingerprint"),
) -> None:
    """Write a dataset's spacings, shapes, intensities and class volumes, as JSON and picture."""
    from segresmamba.data import write_fingerprint

    for path in write_fingerprint(store, out):
        typer.echo(f"written: {path}")


@app.command()
def configure(
    store: Store,
    gpu_memory_gib: Annotated[float, typer.Option(min=1, help="Memory of one GPU.")] = 8.0,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs.")] = 1,
    budget_h: Annotated[
        float | None, typer.Option(min=0.01, help="Hours that the training may take.")
    ] = None,
    model: Annotated[str, typer.Option(help="Preset of configs/model.")] = "segresmamba_fine",
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: STORE.yaml, beside the store.")
    ] = None,
) -> None:
    """Propose the settings of a run from a store and the memory of the GPUs, and why."""
    from segresmamba.configure import Request
    from segresmamba.configure import configure as run

    logging.getLogger("segresmamba.ops").setLevel(logging.WARNING)  # no scan is computed
    proposal = run(Request(store, gpu_memory_gib, gpus, budget_h, model))
    file = proposal.write(out)
    for line in proposal.advice:
        typer.echo(line)
    typer.echo(f"settings: {file}")
    import torch

    if not torch.cuda.is_available():
        typer.echo(
            "this machine has no GPU; for a first try on its processors: configure with "
            "--model segresmamba_fine_small, and train with train.precision=fp32 "
            "train.max_steps=300 train.warmup_steps=20 train.validate_every=100"
        )


@app.command()
def train(
    overrides: Overrides = None,
    allow_config_change: Annotated[
        bool, typer.Option("--allow-config-change", help="Go on with a run under new settings.")
    ] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Train in this one process; `python -m launch train` runs many, here or on Slurm."""
    from segresmamba.config import load_config, with_own_presets

    allowed = ["run.allow_config_change=true"] if allow_config_change else []
    config = load_config([*with_own_presets(overrides, config_dir), *allowed])
    from segresmamba.engine import request_stop
    from segresmamba.engine import train as run

    with _stopping(request_stop):
        result = run(config)
    typer.echo(f"{result['status']} at step {result['step']}: {result['folder']}")
    typer.echo(f"watch and compare: {result['ui_hint']}")


@app.command("lr-range")
def lr_range(
    overrides: Overrides = None,
    out: OutFolder = Path("lr-range"),
    steps: Annotated[int, typer.Option(min=10, help="Training steps.")] = 100,
    lowest: Annotated[float, typer.Option(min=1e-12, help="The first learning rate.")] = 1e-6,
    highest: Annotated[float, typer.Option(min=1e-12, help="The last learning rate.")] = 1.0,
    config_dir: ConfigDir = None,
) -> None:
    """Raise the learning rate until the loss breaks, and suggest a train.lr. Trains no run."""
    from segresmamba.config import load_config, with_own_presets

    config = load_config(with_own_presets(overrides, config_dir))
    from segresmamba.engine import lr_range as run

    found = run(config, steps=steps, lowest=lowest, highest=highest)
    for path in found.write(out):
        typer.echo(f"written: {path}")
    typer.echo(f"suggested: train.lr={found.suggested:.1e}")


@app.command("debug-batch")
def debug_batch(
    run: Run,
    step: Annotated[
        int | None, typer.Argument(min=1, help="A step that was skipped. Default: the last one.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="The dataset, if it lies elsewhere on this machine.")
    ] = None,
) -> None:
    """Repeat the batch of a skipped step, and say where the first value is not finite."""
    from segresmamba.engine.debug_batch import debug_batch as repeat

    for diagnosis in repeat(run, step, store):
        typer.echo(str(diagnosis))


app.command()(evaluate)
app.command()(select)
app.command()(predict)
app.command()(serve)
app.command()(view)


@app.command()
def bench(
    overrides: Overrides = None,
    models: Annotated[
        str | None, typer.Option(help="Presets of configs/model, comma-separated. Default: all.")
    ] = None,
    out: OutFolder = Path("bench"),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps to time.")] = None,
    memory_gib: Annotated[
        float | None, typer.Option(min=0.1, help="Memory that each network may use.")
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Compare networks: parameters, operations, memory, time and energy of a training step."""
    from segresmamba.bench import bench as run
    from segresmamba.bench import default_models
    from segresmamba.config import with_own_presets

    named = [name.strip() for name in (models or "").split(",") if name.strip()]
    # SIGTERM must do what Ctrl-C does: end the network's process too, and keep the finished rows.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with counting("measuring", console, "networks") as progress:
            result = run(
                named or default_models(),
                with_own_presets(overrides, config_dir),
                out=out,
                steps=steps,
                memory_gib=memory_gib,
                progress=progress,
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    console.print(result.table)
    for file in result.files:
        typer.echo(f"written: {file}")
    typer.echo(f"compare the runs: {result.ui_hint}")
    # A network that runs out of memory is a result of the comparison; one that fails is not.
    raise typer.Exit(1 if any(row.status == "failed" for row in result.results) else 0)


@app.command()
def plan(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Predict the memory of a training step without a GPU and propose settings that fit."""
    from segresmamba.config import load_config, with_own_presets

    config = load_config(with_own_presets(overrides, config_dir))
    from segresmamba.planner import Planner, gpu_memory_gib, table, verdict
    from segresmamba.task.task import Task

    logging.getLogger("segresmamba.ops").setLevel(logging.WARNING)  # no scan is computed
    memory_gib = gpu_memory_gib(config)
    result = Planner(Task.from_config(config)).plan(memory_gib)
    console.print(table(result))
    typer.echo(verdict(result))


@app.command()
def warmup(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    capability: Annotated[
        list[str] | None,
        typer.Option(help="Compute capability of GPUs that are not here, such as 9.0; repeatable."),
    ] = None,
) -> None:
    """Compile the GPU kernels of a network into TRITON_CACHE_DIR, as for a container image."""
    import torch

    from segresmamba.config import load_config, with_own_presets
    from segresmamba.task.task import build_network
    from segresmamba.task.warm_up import capability_number, compile_scans

    config = load_config(with_own_presets(overrides, config_dir))
    numbers: list[int | None] = [capability_number(given) for given in capability or ()]
    if not numbers and not torch.cuda.is_available():
        raise ConfigError(
            "there is no GPU here to compile for",
            where="--capability",
            got="nothing",
            remedy="name that of the GPUs: --capability 9.0 for an H100 or H200, 8.0 for an A100",
        )
    network = build_network(config, 1, 2)
    for number in numbers or [None]:
        device = torch.device("meta" if number else "cuda")
        compile_scans(network, config.train.precision, device, number)
    where = os.environ.get("TRITON_CACHE_DIR", "~/.triton/cache")
    typer.echo(f"the kernels for train.precision={config.train.precision} are in {where}")


@app.command()
def settings(
    key: Annotated[
        str | None,
        typer.Argument(help="A setting, or the beginning of some: train.lr, train, model=unet."),
    ] = None,
) -> None:
    """List every setting with its default, its type or choices, and what it means."""
    from segresmamba.config.settings import listing

    typer.echo(listing(key, shutil.get_terminal_size().columns))


@app.command()
def sync(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
) -> None:
    """Bring MLflow to the state of the runs' journals; repeating it changes nothing."""
    from segresmamba.tracking import TrackingError, run_folders
    from segresmamba.tracking import sync as bring

    # What is wrong with one run must not keep the others from being sent.
    failed = False
    folders: list[Path] = []
    for target in runs:
        try:
            folders += run_folders(target)
        except UserError as error:
            sys.stderr.write(error.screen() + "\n")
            failed = True
    for folder in folders:
        try:
            bring(folder)
        except UserError as error:
            sys.stderr.write(error.screen() + "\n")
            failed = True
        except Exception as error:
            # MLflow passes on whatever its HTTP client or database raises. The server does not
            # answer, so there is no use in trying the other runs.
            is_file = isinstance(error, OSError) and error.filename is not None
            when = "its folder can be written" if is_file else "the server is back"
            raise TrackingError(
                "MLflow could not be brought to the journal's state",
                where=folder,
                got=(str(error).splitlines() or [type(error).__name__])[0],
                remedy=f"repeat the command when {when}; nothing is lost or sent twice",
            ) from error
        else:
            typer.echo(f"{folder}: MLflow has everything")
    raise typer.Exit(2 if failed else 0)


@app.command()
def report(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, folders of runs, sweeps, or MLflow experiments.", metavar="RUN..."
        ),
    ],
    out: OutFolder = Path("report"),
    baseline: Annotated[
        str | None, typer.Option(help="Run to compare energy and Dice of the others with.")
    ] = None,
    uri: Annotated[
        str | None, typer.Option(help="Tracking URI of the experiments. Default: that of runs/.")
    ] = None,
) -> None:
    """Compare runs by what they recorded: writes a page, Markdown and pictures."""
    from segresmamba.config import load_config
    from segresmamba.report import write_report
    from segresmamba.tracking import tracking_uri

    root = load_config().run.root

    # A function: where the targets are folders, no tracking URI is needed.
    def mlflow() -> str:
        config = load_config([f"tracking.uri='{uri}'"] if uri else [])
        return tracking_uri(config.tracking, root)

    result = write_report(targets, out, uri=mlflow, root=root, baseline=baseline)
    typer.echo(f"runs:     {result.runs}, in groups: {result.groups}")
    typer.echo(f"page:     {result.page}")
    typer.echo(f"Markdown: {result.markdown}")
    for picture in result.pictures:
        typer.echo(f"picture:  {picture}")


@app.command()
def doctor(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    slurm: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a preset for this Slurm cluster, such as configs/cluster/ours.yaml.",
        ),
    ] = None,
) -> None:
    """Show what this machine offers for training, and how to install what is missing."""
    if slurm is not None:
        from segresmamba.cli.slurm_site import write_preset

        typer.echo(f"{slurm}: look it over, then use it as {write_preset(slurm)}")
        return
    from segresmamba.cli.doctor import checks, render
    from segresmamba.config import load_config, with_own_presets

    console.print(render(checks(load_config(with_own_presets(overrides, config_dir)))))


def _stopping(request_stop: Callable[[], None]) -> AbstractContextManager[None]:
    """The first Ctrl-C, SIGTERM or loss of the terminal asks to save a checkpoint and stop.

    A second Ctrl-C ends at once.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        request_stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # No promise: the training may be failing at this moment.
        sys.stderr.write("\nasked to save a checkpoint and stop; Ctrl-C again ends at once\n")

    return on_stop_signals(stop)


if __name__ == "__main__":
    main()
