"""`python -m launch`: the same `key=value` overrides as `segresmamba train`, here or on Slurm.

This file only reads arguments and chooses what runs. It imports neither torch nor the trackers, so
that a job is submitted at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from launch.jobs.backends import backend_for
from launch.jobs.slurm import Slurm
from launch.jobs.submission_check import require_trainable
from launch.jobs.train_job import TrainJob
from launch.selection import Order, Selection
from launch.slurm import allocation
from launch.status import as_json, is_single, read_all, show_runs, single_runs
from launch.sweeps import run
from launch.sweeps.folds import ALL, all_folds, fold_sweep_name
from launch.sweeps.plan_search import Sampler, plan_search
from launch.sweeps.sweep import MANIFEST, Sweep
from launch.sweeps.trial_job import TrialJob
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
)
from segresmamba.cli.predict import (
    Device,
    Energy,
    LabelFormat,
    NoPostprocessing,
    Overlap,
    Places,
    Precision,
    Probabilities,
    SplitOption,
    Tta,
    is_label_file,
    request_of,
)
from segresmamba.cli.version import Version
from segresmamba.config import Config, load_config, read_config, with_own_presets
from segresmamba.errors import OUR_CODE, LaunchError, sort_error
from segresmamba.storage.run_folder import RunFolder, refuse_changes
from segresmamba.storage.terminal import shield_output

MaxParallel = Annotated[
    int | None,
    typer.Option(min=1, help="Trials or folds that run at once. Default: 1 here, 8 on Slurm."),
]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _program(version: Version = False) -> None:
    """Start jobs on this machine or on Slurm."""


@app.command()
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="As in cluster=slurm train.lr=3e-4"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run: on Slurm the sbatch script.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="On Slurm: show the log until the job has ended.")
    ] = False,
    allow_config_change: Annotated[
        bool, typer.Option("--allow-config-change", help="Go on with a run under new settings.")
    ] = False,
    max_parallel: MaxParallel = None,
    config_dir: ConfigDir = None,
    in_allocation: Annotated[bool, typer.Option("--in-allocation", hidden=True)] = False,
) -> None:
    """Train: cluster=local (ranks on this machine), debug (in this process) or slurm (sbatch)."""
    overrides = with_own_presets(overrides, config_dir)
    if allow_config_change:
        overrides += ["run.allow_config_change=true"]
    if in_allocation:
        # Last, so that what sbatch granted wins over the user's own cluster.* values.
        overrides += allocation.overrides()
    if ALL in overrides:
        if in_allocation:
            raise LaunchError(
                "the folds are jobs of their own, which cannot all run in this one",
                where="train.fold",
                got="all, with sbatch slurm/train.sh",
                remedy="sbatch slurm/sweep.sh train.fold=all ..., which queues them",
            )
        folds = all_folds(overrides)
        _run_sweep(
            Sweep.from_overrides(folds, fold_sweep_name(folds)), max_parallel, dry_run=dry_run
        )
    job = TrainJob(load_config(overrides))
    if not dry_run:
        _end_if_finished(job.config)
    # Ranks on this machine would say the same within seconds, and a requeued job has been checked.
    is_queued_again = in_allocation and allocation.is_restart()
    if dry_run or (job.config.cluster.name == "slurm" and not is_queued_again):
        require_trainable({"": [job.config]})
    if in_allocation and not dry_run:
        Slurm().run_in_allocation(job)
    backend = backend_for(job.config)
    if dry_run:
        typer.echo(backend.describe(job), nl=False)
    else:
        sys.exit(backend.start(job, follow=follow))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Dataset folder, or a MONAI datalist.")],
    out: Annotated[Path, typer.Argument(help="Store to write.", metavar="STORE")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="As in cluster=slurm cluster.cpus_per_task=4"),
    ] = None,
    tasks: Annotated[
        int, typer.Option(min=1, help="Jobs of the array; without Slurm, processes here.")
    ] = 8,
    kind: FormatName = "auto",
    resample_mismatched: ResampleMismatched = False,
    spacing: SpacingPolicy = "keep",
    crop: CropPolicy = False,
    intensity: IntensityPolicy = "auto",
    dtype: DtypePolicy = "auto",
    splits: Splits = None,
    overwrite: Overwrite = False,
    config_dir: ConfigDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run: on Slurm the sbatch scripts.")
    ] = False,
) -> None:
    """Convert a dataset, on Slurm as an array; the same command goes on with what is missing."""
    from launch import convert_job
    from segresmamba.data import Policy
    from segresmamba.data.conversion.plan import ConversionRequest

    policy = Policy.from_options(spacing=spacing, crop=crop, intensity=intensity, dtype=dtype)
    request = ConversionRequest(source, out, kind, resample_mismatched, policy, splits, overwrite)
    cluster = convert_job.cluster_of(overrides or [], config_dir)
    if dry_run:
        typer.echo(convert_job.describe(request, cluster, tasks), nl=False)
    else:
        convert_job.run(request, cluster, tasks)


@app.command()
def predict(
    places: Places,
    tasks: Annotated[
        int | None,
        typer.Option(min=1, help="Jobs of the array. Without Slurm, processes: one for each GPU."),
    ] = None,
    kind: LabelFormat = None,
    probabilities: Probabilities = False,
    split: SplitOption = "all",
    tta: Tta = False,
    overlap: Overlap = None,
    device: Device = "auto",
    precision: Precision = None,
    no_postprocessing: NoPostprocessing = False,
    energy: Energy = True,
    config_dir: ConfigDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run: on Slurm the sbatch script.")
    ] = False,
) -> None:
    """Segment a folder or store on all GPUs here, or on Slurm as an array (cluster=slurm)."""
    from launch import predict_job
    from launch.convert_job import cluster_of
    from segresmamba.inference.options import InferenceOptions

    overrides = [place for place in places if place.startswith(("cluster=", "cluster."))]
    cluster = cluster_of(overrides, config_dir, command="predict", gpus=1)
    request = request_of(
        [place for place in places if place not in overrides],
        InferenceOptions(device, precision, tta, overlap, not no_postprocessing),
        kind=kind,
        probabilities=probabilities,
        split=split,
        energy=energy,
    )
    if is_label_file(request.out):
        raise LaunchError(
            "jobs write to a folder",
            where="OUTPUT",
            got=request.out,
            remedy="name a folder, or give the same to `segresmamba predict`",
        )
    if dry_run:
        typer.echo(predict_job.describe(request, cluster, tasks), nl=False)
    else:
        predict_job.run(request, cluster, tasks)


@app.command()
def sweep(
    overrides: Annotated[
        list[str], typer.Argument(metavar="KEY=A,B", help="As in model=segresmamba,segresnet")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the sweep, here and in MLflow.")] = None,
    max_parallel: MaxParallel = None,
    search: Annotated[
        Sampler | None,
        typer.Option(help="Choose the trials by their Dice so far instead of trying all."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="For a search: how many trials in all.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="For a search: a database. Default: a file."),
    ] = None,
    config_dir: ConfigDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials.")] = False,
) -> None:
    """Run every combination, or a search; the same command goes on with what is missing."""
    overrides = with_own_presets(overrides, config_dir)
    if search is not None:
        planned = plan_search(overrides, trials, name, storage)
    elif trials is not None or storage is not None:
        raise LaunchError(
            "a grid has as many trials as it has points, and no storage",
            where="--trials" if storage is None else "--storage",
            got=trials if storage is None else storage,
            remedy="leave it out, or add --search optuna",
        )
    else:
        planned = Sweep.from_overrides(
            all_folds(overrides) if ALL in overrides else overrides, name
        )
    _run_sweep(planned, max_parallel, dry_run=dry_run)


@app.command()
def status(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of a sweep or a run. Default: all.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    failed: Annotated[bool, typer.Option("--failed", help="Only what has failed.")] = False,
    running: Annotated[bool, typer.Option("--running", help="Only what runs now.")] = False,
    sort: Annotated[Order, typer.Option(help="What comes first.")] = Order.NAME,
    json: Annotated[bool, typer.Option("--json", help="Print a list for scripts.")] = False,
) -> None:
    """Show where sweeps and runs stand, with their Dice and energy, and why some have failed."""
    selection = Selection.from_options(failed=failed, running=running, order=sort)
    sweeps, folders = [], [folder] if folder else []
    if folder is None or (folder / MANIFEST).exists() or not is_single(folder):
        found = [folder] if folder else sorted(p.parent for p in root.glob(f"sweeps/*/{MANIFEST}"))
        sweeps = [Sweep.read(path) for path in found]
        folders = [] if folder else single_runs(root, sweeps)
    runs = selection.of(read_all(sweeps, folders))
    if json:
        typer.echo(as_json(sweeps, runs, selection))
        return
    for sweep in sweeps:
        if folder or not selection.states or selection.of(sweep.trials):
            typer.echo(f"{sweep.folder}:")
            run.show(sweep, selection)
    if folders and folder is None:
        typer.echo(f"{root}:")
    show_runs(runs)
    if not sweeps and not folders:
        typer.echo(f"no sweeps and no runs in {root}")
    elif not runs and not any(selection.of(sweep.trials) for sweep in sweeps):
        count = len(folders) + sum(len(sweep.trials) for sweep in sweeps)
        typer.echo(f"none of {count} run(s) is {' or '.join(sorted(selection.states))}")


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep or a run.")],
    max_parallel: MaxParallel = None,
) -> None:
    """Run what is missing of a sweep, or go on with a run."""
    if (folder / MANIFEST).exists():
        sys.exit(run.run_sweep(Sweep.read(folder), max_parallel))
    config = read_config(RunFolder(folder).config)
    # The folder may have been moved since the configuration was written.
    where = config.run.model_copy(update={"root": folder.parent, "name": folder.resolve().name})
    config = config.model_copy(update={"run": where})
    _end_if_finished(config)
    if config.cluster.name == "slurm":
        require_trainable({"": [config]})
    sys.exit(backend_for(config).start(TrainJob(config)))


@app.command(hidden=True)
def trial(folder: Path, number: int) -> None:
    """Run one trial of a sweep here."""
    job = TrialJob(folder, number)
    sys.exit(backend_for(job.resolved_config()).start(job))


def _end_if_finished(config: Config) -> None:
    """End this command if nothing is left to do for the run, so that no job is started for it."""
    folder, train = RunFolder.from_config(config), config.train
    reached = max(folder.saved_steps(), default=0)
    if not reached or (reached < train.max_steps and not (train.epochs or train.patience)):
        return
    from segresmamba.tracking import finished_step, finished_text

    refuse_changes(config)
    if (step := finished_step(folder.path, train)) is not None:
        typer.echo(finished_text(folder.path, step))
        sys.exit(0)


def _run_sweep(planned: Sweep, max_parallel: int | None, *, dry_run: bool) -> NoReturn:
    require_trainable(planned.configs())
    if dry_run:
        planned.refresh()
        run.show(planned)
        sys.exit(0)
    sys.exit(run.run_sweep(planned, max_parallel))


def main() -> None:
    """Run a command; all errors but our own are one screen of text, see `segresmamba.errors`."""
    shield_output()
    try:
        app()
    except Exception as error:
        code, text = sort_error(error)
        if code == OUR_CODE:
            raise
        typer.echo(text, err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
