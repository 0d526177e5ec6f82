"""A real Slurm of one node, this machine, with all that it writes in one folder; started and ended by the test."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.test_main import wait_for

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "scontrol", "sinfo")

# Jobs of `low` give way to those of `high`: notice, two minutes of grace, and back into the queue.
# cred_expire is how long a requeued job waits before it starts again; Slurm's own value is 120 seconds, and it takes
# none much below 5.
CONF = """
ClusterName=fmstune
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1024 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=120 MaxTime=1:00:00 State=UP
PartitionName=high Nodes={host} PriorityTier=2 MaxTime=1:00:00 State=UP
"""


def missing() -> str | None:
    """Why Slurm cannot be started here; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "Slurm's daemons need Linux and root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"no {', '.join(absent)} here: apt install slurm-wlm munge" if absent else None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("", 0))
        two.bind(("", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _ask(conf: Path, *words: str) -> str:
    env = {**os.environ, "SLURM_CONF": str(conf)}
    return subprocess.run(words, env=env, capture_output=True, text=True).stdout.strip()


def _is_idle(conf: Path) -> bool:
    return _ask(conf, "sinfo", "--noheader", "--format=%T", "--partition=low") == "idle"


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Slurm's configuration file, while its daemons run."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    # two at least, also on a machine with one: slurmd takes what it is told with config_overrides
    cores = max(os.cpu_count() or 1, 2)
    conf.write_text(CONF.format(folder=folder, host=host, ports=_free_ports(), cores=cores))
    conf.write_text(conf.read_text() + "SlurmdParameters=config_overrides\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        log = (folder / f"{words[0]}.out").open("wb")
        env = {**os.environ, "PATH": _path(), "SLURM_CONF": str(conf)}
        daemons.append(subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env))

    try:
        names = ("socket", "key-file", "pid-file", "log-file", "seed-file")
        # --force: the folder of a test may be open to others
        places = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in names]
        start("munged", "--foreground", "--force", *places)
        wait_for((folder / "munge.socket").exists, "munged", 20)
        start("slurmctld", "-D", "-f", str(conf))
        start("slurmd", "-D", "-f", str(conf))
        wait_for(lambda: _is_idle(conf), f"the node (see the logs in {folder})", 40)
        try:
            yield conf
        finally:
            # what runs a job outlives the daemons
            _ask(conf, "scancel", "--user=root")
            wait_for(lambda: _is_idle(conf), "the end of all jobs", 60)
    finally:
        # slurmd leaves its jobs alone when it ends
        cancel = ["scancel", "--full", "--signal=KILL", f"--user={os.getuid()}"]
        env = {**os.environ, "SLURM_CONF": str(conf)}
        subprocess.run(cancel, env=env, capture_output=True, check=False, timeout=20)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
