"""A SLURM cluster of two emulated nodes on this machine, without systemd: started for a check, and stopped again. Needs root."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=echo
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=60
KillWait=10
MinJobAge=600
JobRequeue=1
SwitchType=switch/none
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=01:00:00 State=UP OverSubscribe=NO
"""


class ClusterError(RuntimeError):
    """A command of the cluster failed."""


@dataclass(frozen=True)
class Job:
    """State of a job as the controller reports it."""

    state: str
    exit_code: str
    restarts: int


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str, **more: str) -> str:
        """Run a command of SLURM's; return what it prints.

        Raises:
            ClusterError: it failed.
        """
        done = subprocess.run(command, env=self.environment | more, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def submit(self, script: Path, arguments: Sequence[str], options: Sequence[str], **environment: str) -> str:
        """Put a batch script into the queue; return the job's number."""
        return self.call("sbatch", "--parsable", *options, str(script), *arguments, **environment).strip().split(";")[0]

    def job(self, number: str) -> Job:
        """One job, or one of an array (``7_1``)."""
        text = self.call("scontrol", "show", "job", "--oneliner", number)
        fields = dict(part.split("=", 1) for part in text.split() if "=" in part)
        return Job(state=fields["JobState"], exit_code=fields["ExitCode"], restarts=int(fields.get("Restarts", 0)))

    def wait(self, number: str, *states: str, seconds: float = 240) -> Job:
        """Wait until a job is in one of these states; without any, until it has ended.

        Raises:
            ClusterError: it is in none of them after so many seconds.
        """
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        give_up = time.monotonic() + seconds
        while (job := self.job(number)).state not in wanted:
            if time.monotonic() > give_up:
                raise ClusterError(f"job {number} is {job} after {seconds:.0f} s, not {' or '.join(wanted)}")
            time.sleep(0.5)
        return job


def install() -> None:
    """Install Debian's packages where they are absent.

    Raises:
        ClusterError: that is not possible here.
    """
    if os.geteuid():
        raise ClusterError("the daemons of a cluster that is started here run as root: be root, in a container for instance")
    if all(shutil.which(name) for name in ("slurmctld", "slurmd", "sbatch", "munged")):
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(f"this is no Debian, install these first: {' '.join(PACKAGES)}")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=quiet, capture_output=True, text=True, check=False)
        if done.returncode and command[0] == "install":
            raise ClusterError(f"apt-get {' '.join(command)}: {done.stderr}")


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start controller and nodes; stop them, and all jobs, whatever happens."""
    install()
    for name in ("run", "log", "state", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    configuration = folder / "slurm.conf"
    controller, first, second = _free_ports(3)
    configuration.write_text(CONFIGURATION.format(folder=folder, controller=controller, first=first, second=second))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
    running = Cluster(folder, clean | {"SLURM_CONF": str(configuration)})
    try:
        running.call(
            "munged", f"--key-file={key}", f"--socket={folder}/run/munge.sock", f"--pid-file={folder}/run/munged.pid",
            f"--log-file={folder}/log/munged.log", f"--seed-file={folder}/run/munge.seed",
        )  # fmt: skip
        running.call("slurmctld", "-f", str(configuration), "-i")
        for node in NODES:
            running.call("slurmd", "-f", str(configuration), "-N", node)
        _wait_for_nodes(running)
        yield running
    finally:
        _stop(running)


def _wait_for_nodes(running: Cluster, seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            if running.call("sinfo", "--noheader", "--format=%T %D").split() == ["idle", str(len(NODES))]:
                return
        except ClusterError:
            pass  # the controller is not up yet
        if time.monotonic() > give_up:
            logs = "\n".join(path.read_text()[-1000:] for path in sorted((running.folder / "log").glob("*.log")))
            raise ClusterError(f"the nodes are not up after {seconds:.0f} s:\n{logs}")
        time.sleep(0.5)


def _stop(running: Cluster) -> None:
    try:
        for state in ("RUNNING", "PENDING"):
            running.call("scancel", f"--state={state}", f"--user={getpass.getuser()}")
        give_up = time.monotonic() + 20  # KillWait, and a little
        while running.call("squeue", "--noheader").strip() and time.monotonic() < give_up:
            time.sleep(0.5)
    except (ClusterError, subprocess.TimeoutExpired):
        pass  # the controller never came up
    for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munged"):
        pid = running.folder / "run" / f"{name}.pid"
        if pid.is_file() and (text := pid.read_text().strip()):
            _end(int(text))


def _end(pid: int, seconds: float = 15) -> None:
    """End a daemon, and wait until it is gone: it writes to its folder until then."""
    give_up = time.monotonic() + seconds
    number: int = signal.SIGTERM
    while True:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        number = 0 if time.monotonic() < give_up else signal.SIGKILL
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
