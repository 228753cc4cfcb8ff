"""A real Slurm on this one machine: munge, MariaDB, slurmdbd, slurmctld and two nodes.

    python tests/cluster/cluster.py up      # as root, with the Debian packages named below
    export SLURM_CONF=$(python tests/cluster/cluster.py conf)
    sinfo; sbatch ...
    python tests/cluster/cluster.py down

Everything lies in one folder, with ports, sockets and a munge key of its own: a Slurm or MariaDB
that the machine has besides is not touched. Only /etc/hosts gets a line, while the cluster is up.
Each worker of pytest-xdist has a cluster of its own: the tests mostly wait for Slurm.

Nodes n1 and n2 have two stand-in GPUs each: device files, for which Slurm sets CUDA_VISIBLE_DEVICES
as it does for real ones. They are two for Slurm alone; to give them something that they do not
share, n2 lives in a mount namespace where `UNSHARED` is another, empty folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
ROOT = Path(tempfile.gettempdir()) / f"segresmamba-cluster-{NUMBER}"
CONF = ROOT / "slurm.conf"
UNSHARED = ROOT / "unshared"
NODES = ("n1", "n2")
HOSTS = Path("/etc/hosts")
HOSTS_MARK = "# segresmamba test cluster"
HOSTS_LINE = f"127.0.0.1 n1 n2 {HOSTS_MARK} {NUMBER}\n"
_PORTS = {
    name: 16817 + 10 * NUMBER + place
    for place, name in enumerate(("slurmctld", "mariadb", "slurmdbd", "n1", "n2"))
}
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch")
PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
START_S = 120.0  # for each daemon; the machine may be busy

_SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=5
SlurmdParameters=config_overrides
SlurmdTimeout=15
ReturnToService=2
SlurmctldPort={slurmctld}
# Neither ports nor process lists may mix up the jobs of two clusters.
FirstJobId={first_job}
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={slurmdbd}
AccountingStoragePass={root}/munge.socket
AccountingStorageEnforce=associations,limits,qos
JobCompType=jobcomp/none
JobRequeue=1
MaxArraySize=20
KillWait=5
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=8 RealMemory=10000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=8 RealMemory=10000 Gres=gpu:2
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10
PartitionName=short Nodes=ALL MaxTime=30 PriorityTier=1
"""

_ACCOUNTING = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
DbdHost=localhost
DbdPort={slurmdbd}
SlurmUser=root
LogFile={root}/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""


def missing() -> str | None:
    """Why no cluster can be brought up here, or None if one can."""
    if os.geteuid() != 0:
        return "only root can bring up a Slurm"
    absent = [program for program in PROGRAMS if _which(program) is None]
    return f"no {', '.join(absent)} (apt-get install {' '.join(PACKAGES)})" if absent else None


def up() -> None:
    """Bring the cluster up, afresh: what an earlier one left, running or dead, goes first."""
    down()
    for folder in ("state", "spool.n1", "spool.n2", "unshared"):
        (ROOT / folder).mkdir(parents=True)
    values = {"root": ROOT, "host": socket.gethostname(), "first_job": 10000 * NUMBER + 1, **_PORTS}
    CONF.write_text(_SLURM.format_map(values))
    accounting = ROOT / "slurmdbd.conf"
    accounting.touch(mode=0o600)
    accounting.write_text(_ACCOUNTING.format_map(values))
    _make_gpus()
    _edit_hosts(lambda text: text + HOSTS_LINE)
    try:
        _start_daemons()
    except Exception:
        down()
        raise


def down() -> None:
    """End every process of the cluster and of its jobs, and delete its folder."""
    # Daemons first ask, so that MariaDB needs no repair; jobs go with them.
    for signum, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        for pid in _processes():
            with _gone_is_fine():
                os.kill(pid, signum)
        if _wait(lambda: not list(_processes()), patience_s):
            break
    _edit_hosts(lambda text: text.replace(HOSTS_LINE, ""))
    shutil.rmtree(ROOT, ignore_errors=True)


def start_node(node: str) -> None:
    """Start the slurmd of a node, as after its crash."""
    namespace = []
    if node == "n2" and may_unshare():
        mount = f'mount -t tmpfs none {UNSHARED} && exec "$@"'
        namespace = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    _run(*namespace, "slurmd", "-N", node, "-f", str(CONF))


def kill_node(node: str) -> None:
    """End a node as a power failure does: its slurmd, and the processes of its jobs."""
    # Both before any process: the slurmd would report an end of its tasks.
    pids = [int((ROOT / f"slurmd.{node}.pid").read_text()), *_job_processes(node)]
    for pid in pids:
        with _gone_is_fine():
            os.kill(pid, signal.SIGKILL)


def start_controller() -> None:
    """Start slurmctld, which takes up what the one before has saved."""
    _run("slurmctld", "-f", str(CONF))


def stop_controller() -> None:
    """End slurmctld, as for an upgrade: it saves its state.

    After a crash it would know of the last seconds only what it had saved by then. It would take a
    job that had just begun for one that waits.
    """
    pid = int((ROOT / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    if not _wait(lambda: _state(pid) == "Z", START_S):
        raise RuntimeError(f"slurmctld has not ended after {START_S:.0f} s\n{_log_ends()}")


def _edit_hosts(change: Callable[[str], str]) -> None:
    """Edit the file in place and at once: another cluster may edit it too, or look up a name."""
    with HOSTS.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = change(file.read())
        file.seek(0)
        file.write(text)
        file.truncate()


def _start_daemons() -> None:
    files = {name: ROOT / f"munge.{name}" for name in ("key", "socket", "pid", "log", "seed")}
    files["key"].touch(mode=0o600)
    files["key"].write_bytes(os.urandom(128))
    options = [f"--socket={files.pop('socket')}"]
    options += [f"--{name}-file={path}" for name, path in files.items()]
    _run("munged", "--force", "--num-threads=2", *options)
    _start_database()
    _run("slurmdbd")
    _until("slurmdbd", ["sacctmgr", "-n", "list", "cluster"])
    _run("sacctmgr", "-i", "add", "cluster", "test")
    _run("sacctmgr", "-i", "add", "account", "lab")
    _run("sacctmgr", "-i", "add", "user", "root", "account=lab")
    start_controller()
    for node in NODES:
        start_node(node)
    _until(
        "two idle nodes", ["sh", "-c", "test $(sinfo -h -N -t idle -o %N | sort -u | wc -l) = 2"]
    )


def _start_database() -> None:
    folder, sock = ROOT / "database", ROOT / "database.socket"
    # MariaDB deletes the temporary tables that it finds when it starts, those of another cluster's
    # database too. So each has a folder of its own for them.
    temporary = ROOT / "database.tmp"
    temporary.mkdir()
    _run(
        *(
            "env",
            f"TMPDIR={temporary}",
            _program("mariadb-install-db"),
            "--no-defaults",
            "--user=root",
            f"--datadir={folder}",
        ),
        *("--auth-root-authentication-method=normal", "--skip-test-db"),
    )
    _run(
        *("setsid", "--fork", _program("mariadbd"), "--no-defaults", "--user=root"),
        f"--tmpdir={temporary}",
        *(f"--datadir={folder}", f"--socket={sock}"),
        *(f"--port={_PORTS['mariadb']}", "--bind-address=127.0.0.1"),
        *(f"--pid-file={ROOT}/database.pid", f"--log-error={ROOT}/database.log"),
        *("--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"),
    )
    client = ["mariadb", "--no-defaults", f"--socket={sock}", "--user=root", "-e"]
    _until("MariaDB", [*client, "SELECT 1"])
    user = "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm'"
    _run(*client, f"{user}; GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1'")


def _make_gpus() -> None:
    lines = []
    for node in NODES:
        for number in range(2):
            # The numbers of /dev/null: something that may be opened.
            os.mknod(ROOT / f"{node}-gpu{number}", 0o20666, os.makedev(1, 3))
        lines.append(f"NodeName={node} Name=gpu File={ROOT}/{node}-gpu[0-1]\n")
    (ROOT / "gres.conf").write_text("".join(lines))


def may_unshare() -> bool:
    """Whether the second node can have a folder of its own."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(UNSHARED)]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _environment() -> dict[str, str]:
    return os.environ | {"SLURM_CONF": str(CONF), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def _which(program: str) -> str | None:
    return shutil.which(program, path=_environment()["PATH"])


def _program(name: str) -> str:
    return _which(name) or name


def _run(*command: str) -> None:
    """Run a command to its end; a daemon that it leaves behind keeps none of our pipes open."""
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [_program(command[0]), *command[1:]],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
        if done.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {output.read()}")


def _until(what: str, command: list[str]) -> None:
    def succeeds() -> bool:
        done = subprocess.run(command, env=_environment(), capture_output=True, check=False)
        return done.returncode == 0

    if not _wait(succeeds, START_S):
        raise RuntimeError(f"no {what} after {START_S:.0f} s\n{_log_ends()}")


def _log_ends() -> str:
    ends = {path.name: path.read_text().splitlines()[-5:] for path in sorted(ROOT.glob("*.log"))}
    return "\n".join(f"{name}: {line}" for name, lines in ends.items() for line in lines)


def _wait(condition: Callable[[], bool], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return met


def _processes() -> Iterator[int]:
    """The cluster's daemons and what descends from them: all carry its SLURM_CONF.

    So does a shell that exported it, from which this process may come: ancestors are spared.
    """
    spared = _ancestors()
    mark = f"SLURM_CONF={CONF}".encode()
    for pid, environment in _environments():
        if mark in environment and pid not in spared and _state(pid) != "Z":
            yield pid


def _job_processes(node: str) -> Iterator[int]:
    """The processes that slurmd started on a node: slurmstepd and tasks."""
    cluster = f"SLURM_CONF={CONF}".encode()
    marks = (f"SLURMD_NODENAME={node}".encode(), f"SLURM_NODENAME={node}".encode())
    for pid, environment in _environments():
        if cluster in environment and any(mark in environment for mark in marks):
            yield pid


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue


def _ancestors() -> set[int]:
    pids, pid = set(), os.getpid()
    while pid:
        pids.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pids


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _gone_is_fine() -> contextlib.AbstractContextManager[None]:
    return contextlib.suppress(ProcessLookupError)


def main() -> None:
    match sys.argv[1:]:
        case ["up"]:
            if reason := missing():
                sys.exit(f"error: {reason}")
            started = time.monotonic()
            up()
            print(f"up in {time.monotonic() - started:.1f} s; export SLURM_CONF={CONF}")
        case ["down"]:
            down()
        case ["conf"]:
            print(CONF)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
