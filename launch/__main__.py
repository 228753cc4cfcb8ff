"""`python -m launch`: the same `key=value` words as `segresmamba train`, on one machine or many."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from launch import executor, launcher
from launch.job import TrainJob
from segresmamba.config import load_config
from segresmamba.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _program() -> None:
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
    watch: Annotated[
        bool, typer.Option("--follow", help="On Slurm: show the log until the job has ended.")
    ] = False,
    allow_config_change: Annotated[
        bool, typer.Option("--allow-config-change", help="Go on with a run under new settings.")
    ] = False,
    in_allocation: Annotated[bool, typer.Option("--in-allocation", hidden=True)] = False,
) -> None:
    """Train: cluster=local (ranks on this machine), debug (in this process) or slurm (sbatch)."""
    words = overrides or []
    if allow_config_change:
        words += ["run.allow_config_change=true"]
    if in_allocation:
        words += executor.allocation_overrides()
    job = TrainJob(load_config(words))
    if dry_run:
        typer.echo(launcher.describe(job), nl=False)
    elif in_allocation:
        launcher.run_in_allocation(job)
    else:
        sys.exit(launcher.start(job, watch=watch))


def main() -> None:
    """Run a command; a user's mistake ends it with one screen of text and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(error.screen(), err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
