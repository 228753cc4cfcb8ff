"""What a job's batch script does before and after the srun of its ranks, as lines of shell.

They call programs by their module names. A queued script runs them in the version that is installed
when the job starts, so former module names stay importable.

The ranks run in the background, because a shell obeys a trap only between two commands. So they
also get a signal for this script alone (`sbatch --signal=B:USR1@300`, `scancel --batch`).
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from segresmamba.config import ClusterConfig
from segresmamba.errors import USER_CODE, ConfigError
from segresmamba.secrets import is_hidden, reveal

AT_LIMIT = "limit"
"""What the failure handler gets in the place of an exit code when Slurm ends the job."""
# Ranks that have just been started, when a signal came before them, get this long to heed it.
_START_S = 5
# With sizes of both kinds, one is of a job from which sbatch was called for this one, and srun
# refuses to choose. A step without a size has all memory of its job.
_ONE_SIZE = (
    '[ -z "$SLURM_MEM_PER_CPU" ] || [ -z "$SLURM_MEM_PER_NODE" ] || '
    "unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE"
)
_HAND_ON = (
    "ranks= stop=",
    # srun passes a signal on to all ranks. SIGUSR2 asks them to save, SIGUSR1 belongs to NCCL.
    "trap 'stop=USR2; [ -z \"$ranks\" ] || kill -USR2 $ranks' USR1 USR2 HUP INT",
    "trap 'stop=TERM; [ -z \"$ranks\" ] || kill -TERM $ranks' TERM",
)
# What a file that is sourced says may be secret, so only its name and line are shown. A command
# substitution fails in the line that it is part of. Bash ends without the trap ERR if it finds no
# file to source or no variable under `set -u`, or if a line says `exit`.
_SETUP_FAILED = (
    "setup_failed() {",
    "  [ $BASH_SUBSHELL = 0 ] || return",
    '  case "${BASH_SOURCE[1]}" in "" | "$0") what=$2;; *) what="${BASH_SOURCE[1]}, line $3"; esac',
    "  setup_ended $1",
    "}",
    "setup_ended() {",
    '  [ -z "$setup_done" ] || return',
    "  setup_done=1",
    '  printf "%s\\n" "error: a line of cluster.setup failed" "  where:  cluster.setup" \\',
    '    "  got:    ${hidden:-${what:-it has ended the script}}: exit code $1" \\',
    '    "  remedy: see its output above, then correct it; add || true if it may fail" >&2',
    f"  exit {USER_CODE}",
    "}",
    "what= setup_done=",
    # Stays, because the user's lines may have set another one.
    "trap 'setup_ended $?' EXIT",
    "trap 'setup_failed $? \"$BASH_COMMAND\" $LINENO' ERR",
    "set -eE",
)
_AWAIT = (
    "ranks=$!",
    f'[ -z "$stop" ] || {{ sleep {_START_S}; kill -$stop $ranks; }}',
    # A signal ends `wait`, not what it waits for.
    "while kill -0 $ranks 2>/dev/null; do wait $ranks; done",
    "wait $ranks; code=$?",
)


def before_ranks(cluster: ClusterConfig, logs: Path) -> list[str]:
    """The environment, then the preflight, which prints the port at which the ranks meet.

    A mistake of the user ends the job. Any other failure of the preflight, such as a file system
    that is away, is dealt with like one of a rank: the job is queued again.
    """
    preflight = _python("launch.in_allocation.preflight", logs)
    handler = _python("launch.in_allocation.on_failure", logs)
    return [
        *environment(cluster, logs),
        # The handler finds out whether it is the time limit. The next signal must not end it.
        f"at_limit() {{ (trap '' TERM; exec {handler} {AT_LIMIT}); }}",
        "limit=",
        'trap \'stop=TERM; [ -z "$ranks" ] || { kill -TERM $ranks; '
        '[ -n "$limit" ] || { at_limit & limit=$!; }; }\' TERM',
        f"MASTER_PORT=$({preflight}) || {{ code=$?; [ $code != {USER_CODE} ] || exit $code; "
        f'[ "$stop" != TERM ] || at_limit; exec {handler} $code; }}',
        "export MASTER_PORT",
    ]


def environment(cluster: ClusterConfig, logs: Path) -> list[str]:
    """Traps, the user's own lines, then the variables of the configuration.

    What is secret is asked for when the job runs: everybody may read a script.
    """
    lines = [_ONE_SIZE, *_HAND_ON, *_setup(cluster.setup, logs)]
    for name, value in cluster.variables.items():
        if is_hidden(value):
            lines += [f"{name}=$({_secret(value, logs)}) || exit", f"export {name}"]
        else:
            lines.append(f"export {name}={shlex.quote(value)}")
    return lines


def refuse_bad_shell(setup: tuple[str, ...]) -> None:
    """Refuse lines of the user that no shell can read, before a job finds that out.

    Raises:
        ConfigError: Says what bash says.
    """
    if not setup:
        return
    # A line that may hold a secret is read by itself, see `_setup`.
    apart = [reveal(line) for line in setup if is_hidden(line)]
    for text in [*apart, "\n".join(":" if is_hidden(line) else line for line in setup)]:
        read = subprocess.run(
            ["bash", "-n"], input=text, capture_output=True, text=True, check=False
        )
        if read.returncode:
            raise ConfigError(
                "lines of cluster.setup are no shell",
                where="cluster.setup",
                # The lines after it may show the user's.
                got=read.stderr.partition("\n")[0].removeprefix("bash: "),
                remedy="correct them; a line with an equals sign has to be complete by itself, so "
                "put what takes several lines into a file: 'cluster.setup=[\". FILE\"]'",
            )


def after_ranks(logs: Path) -> list[str]:
    """What follows srun: the failure handler, unless srun succeeded."""
    handler = _python("launch.in_allocation.on_failure", logs)
    # Slurm kills what is left of a job when its batch script ends.
    wait = '[ -z "$limit" ] || wait $limit'
    return [*_AWAIT, wait, f"[ $code = 0 ] || exec {handler} $code"]


def after_share() -> list[str]:
    """What follows the srun of a process that works alone: its exit code."""
    return [*_AWAIT, "exit $code"]


def _setup(setup: tuple[str, ...], logs: Path) -> list[str]:
    """The user's lines, the first of which that fails ends the job as the user's mistake."""
    if not setup:
        return []
    lines = []
    for line in setup:
        if is_hidden(line):
            # Neither the command nor its parts may be in the log.
            lines += [f"hidden={shlex.quote(line)}", f"line=$({_secret(line, logs)})"]
            lines += ['eval "$line"', "hidden="]
        else:
            lines.append(line)
    return [*_SETUP_FAILED, *lines, "set +eE", "trap - ERR", "setup_done=1"]


def _secret(marker: str, logs: Path) -> str:
    return f"{_python('segresmamba.secrets', logs)} {shlex.quote(marker)}"


def _python(module: str, logs: Path) -> str:
    return f"{shlex.quote(sys.executable)} -Pm {module} {shlex.quote(str(logs))}"
