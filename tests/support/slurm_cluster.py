"""A SLURM of its own for tests: munge, slurmctld and three virtual nodes on this machine."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

NODES = 3
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")

# Two partitions over the same nodes: a job of `high` pre-empts one of `low`, which has 20 s to end.
CONFIG = """\
ClusterName=cobo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=10
JobRequeue=1
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str:
    """Return why SLURM cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "SLURM's daemons are started as root, and this is another user"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"SLURM is not installed (no {', '.join(missing)}); see launch/slurm_for_tests.sh"
    return ""


class Cluster:
    """Daemons with their files in one temporary folder, on ports of their own."""

    def __init__(self) -> None:
        # Below /tmp, since munge wants every folder above its socket open to all.
        self.folder = Path(tempfile.mkdtemp(prefix="cobo-slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        }

    def start(self) -> None:
        """Start all daemons and wait until the nodes are idle.

        Raises:
            RuntimeError: they are not after a minute; with the end of the logs.
        """
        with suppress(FileExistsError):
            (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._daemon(
            "munged", "--foreground", "--num-threads=2", f"--key-file={key}",
            f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        host, ports = socket.gethostname().split(".")[0], _free_ports(NODES + 1)
        nodes = "\n".join(
            f"NodeName=n{k} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[k]} CPUs=2"
            for k in range(1, NODES + 1)
        )
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(host=host, ports=ports, folder=self.folder, nodes=nodes)
        )
        # SLURM 23 and later look for cgroups even if nothing uses them.
        version = re.search(r"(\d+)\.", self.call("sinfo", "--version"))
        if version and int(version[1]) >= 23:
            (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        wait_for(lambda: (self.folder / "munge.socket").exists(), 10, "munge's socket")
        self._daemon("slurmctld", "-D")
        for k in range(1, NODES + 1):
            self._daemon("slurmd", "-D", "-N", f"n{k}")
        try:
            wait_for(lambda: self.idle() == NODES, 60, "idle nodes")
        except AssertionError:
            raise RuntimeError(f"the nodes are not up: {self._ends_of_logs()}") from None

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"{len(self.daemons)}-{command[0]}.out").open("wb")
        self.daemons.append(
            subprocess.Popen(
                command,
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        log.close()

    def _ends_of_logs(self) -> str:
        texts = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "; ".join(
            f"{one.name}: {one.read_text(errors='replace').strip().splitlines()[-3:]}"
            for one in texts
        )

    def call(self, *command: str, cwd: Path | None = None, **env: str) -> str:
        """Return the output of one of SLURM's commands, or of any other; "" where it fails."""
        done = self.run(*command, cwd=cwd, **env)
        return done.stdout.strip() if done.returncode == 0 else ""

    def run(
        self, *command: str, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with this cluster's environment."""
        return subprocess.run(
            command,
            cwd=cwd,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def idle(self) -> int:
        """Return how many nodes wait for work."""
        return self.call("sinfo", "-hN", "-p", "low", "-o", "%t").split().count("idle")

    def job(self, job: str) -> Mapping[str, str]:
        """Return what SLURM knows of a job: JobState, Restarts, ExitCode, Reason ..."""
        text = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait(self, job: str, *states: str, seconds: float = 90) -> Mapping[str, str]:
        """Wait until a job is in one of the states; return what SLURM knows of it.

        Raises:
            AssertionError: it is not.
        """
        until = time.monotonic() + seconds
        while (found := self.job(job)).get("JobState") not in states:
            assert time.monotonic() < until, f"job {job} is {dict(found)}"
            time.sleep(0.2)
        return found

    def start_now(self, job: str) -> None:
        """Spare a requeued job the two minutes that SLURM lets it wait."""
        wait_for(lambda: self.job(job).get("JobState") == "PENDING", 30, "pending job")
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")

    def stop(self) -> None:
        """End all jobs and daemons and remove the files."""
        self.call("scancel", "--user=root")
        with suppress(AssertionError):
            wait_for(lambda: not self.call("squeue", "-h"), 20, "an empty queue")
        for daemon in reversed(self.daemons):  # munge last: the others speak through it
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until the condition holds.

    Raises:
        AssertionError: it does not in time.
    """
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"no {what} within {seconds:.0f} s"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
