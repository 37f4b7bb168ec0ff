"""Jobs in a real SLURM: two nodes, an array, signals and going on, pre-emption, scancel, a dying rank."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from launching import environment
from problems import QUIET, rows
from resuming import assert_same
from slurm_cluster import Cluster, wait_for, why_not

from cobo_dist.cli.train import main
from cobo_dist.config import load_config

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "slurm"
STATE_TIMEOUT_SECONDS = float(os.environ.get("COBO_TEST_PATIENCE", "120"))
"""Time limit in seconds for a job to reach a state: many times what it takes on an idle machine."""
DIGITS = [
    *QUIET, "run.rounds=12", "run.eval_every=6", "run.log_weights_every=6", "task.test_size=80",
    "model.hidden=[8]", "data.batch_size=8", "comm.deterministic=true", "log.flush_every=1",
    "algorithm.gamma=0.3", "run.checkpoint_every=0",
]  # fmt: skip
ROUNDS = 40
# A python whose ranks take a quarter of a second for every round, so that a signal comes in the middle.
SLOW = """\
import sys, time
from cobo_dist.tracking.metrics_buffer import MetricsBuffer
from cobo_dist.train import main
keep = MetricsBuffer.round
def slow(self, *rest):
    keep(self, *rest)
    time.sleep(0.25)
MetricsBuffer.round = slow
sys.exit(main(sys.argv[1:]))
"""
SLOW_PYTHON = """\
#!/usr/bin/env bash
while [ "${1:-}" = -u ]; do shift; done
if [ "$1 $2" = "-m cobo_dist.train" ]; then
  shift 2
  exec PYTHON SLOW "$@"
fi
export PYTHON_EXEC="$0"  # what torchrun starts ranks with
exec PYTHON "$@"
"""


# -- without SLURM: what is frozen and what is refused -------------------------------------------------


@pytest.fixture(scope="module")
def submit() -> ModuleType:
    """slurm/submit.py, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("submit", SLURM / "submit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["submit"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_paths_are_frozen_as_absolute_ones(
    submit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = submit.with_absolute_paths(
        load_config(None, ["task.name=quadratic", "task.file=q.npz", "run.resume=auto"])
    )
    assert config.run_dir == tmp_path / "runs" / "quadratic-cobo-s0"
    assert config.task.file == str(tmp_path / "q.npz")
    assert config.data.root == "data", "not read by this task, which would refuse another"
    assert config.data.file == ""
    images = submit.with_absolute_paths(load_config(None, ["task.name=cross_silo"]))
    assert images.data.root == str(tmp_path / "data")
    assert config.run.resume == "auto"
    hub = ["task.name=language", "model.name=causal-lm", "model.path=some/model"]
    assert submit.with_absolute_paths(load_config(None, hub)).model.path == "some/model"
    (tmp_path / "some" / "model").mkdir(parents=True)
    here = submit.with_absolute_paths(load_config(None, hub))
    assert here.model.path == str(tmp_path / "some" / "model")


def test_every_key_that_holds_a_path_is_known(submit: ModuleType) -> None:
    """A new key that names a file or folder must be made absolute, or the job reads another path."""
    from cobo_dist.config import all_keys

    paths = {key for key, field in all_keys()
            if re.search(r"\b(folder|file|npz)\b", str(field.description))
            and field.annotation is str and not key.startswith("log.")}  # fmt: skip
    assert paths <= {*submit.PATHS, *submit.PATHS_OR_NAMES}
    assert {*submit.PATHS, *submit.PATHS_OR_NAMES} <= {key for key, _ in all_keys()}


def test_a_dry_run_writes_nothing(
    submit: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COBO_CONTAINER", "apptainer exec 'my image.sif'")
    flags = ["--nodes=2", "--time=1:00:00", "--exclusive", "--comment=a b"]
    assert submit.main(["--dry-run", "--launcher=torchrun", *flags, "run.dir=50%"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = [line for line in lines if line.startswith("#SBATCH")]
    assert len({line.split("=")[0] for line in header}) == len(header), "every option once"
    for wanted in (
        "#SBATCH --nodes=2", "#SBATCH --time=1:00:00", "#SBATCH --exclusive",
        '#SBATCH --comment="a b"', "#SBATCH --job-name=cobo-50%", "#SBATCH --requeue",
        f"#SBATCH --output={tmp_path}/50%%/logs/job_%j.log",
        f"#SBATCH --chdir={tmp_path}/50%/jobs/001/code",
    ):  # fmt: skip
        assert wanted in header
    assert f"set -- --config '{tmp_path}/50%/jobs/001/config.yaml'" in lines or (
        f"set -- --config {tmp_path}/50%/jobs/001/config.yaml" in lines
    )
    assert not any(line.startswith("export COBO_PYTHON") for line in lines), "the container's own"
    assert list(tmp_path.iterdir()) == []


EARLY = "error: stopped by {} before the first round; nothing was saved"


@pytest.mark.parametrize("script", ["train.sbatch", "train_torchrun.sbatch"])
@pytest.mark.parametrize(
    ("said", "restarts", "requeued"),
    [
        (EARLY.format("SIGTERM"), 0, True),
        (EARLY.format("SIGTERM"), 5, False),
        (EARLY.format("SIGUSR1"), 0, False),
        ("error: rank 1 on node1 died before the first round", 0, False),
    ],
)
def test_a_job_stopped_before_its_first_round_starts_over(
    script: str, said: str, restarts: int, requeued: bool, tmp_path: Path
) -> None:
    """With commands that act as SLURM's do: srun returns 143 whenever it ends a rank by SIGTERM."""
    (tmp_path / "bin").mkdir()
    log = tmp_path / "run" / "logs"
    which = "rank" if script == "train.sbatch" else "node"
    commands = {
        "srun": f'echo "{said}" >> {log}/job_7_{which}_0.log; exit 143',
        "scontrol": 'case "$1" in requeue) echo "requeued $2";; *) echo node1;; esac',
        "python": f'case "$*" in *--show-run-dir*) echo {tmp_path}/run;; *) exit 0;; esac',
    }
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    log.mkdir(parents=True)
    # Of an earlier start: it must not count.
    (log / f"job_7_{which}_0.log").write_text(EARLY.format("SIGTERM") + "\n")
    env = environment(
        SLURM_JOB_ID="7", SLURM_JOB_NODELIST="node1", SLURM_RESTART_COUNT=str(restarts),
        SLURM_JOB_NUM_NODES="1", SLURM_NNODES="1", COBO_PYTHON="python", RANKS="1",
    )  # fmt: skip
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    done = subprocess.run(
        ["bash", str(SLURM / script)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert ("requeued 7" in done.stdout) == requeued, done.stdout + done.stderr
    assert done.returncode == (143 if requeued else 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-N", "2"], "write options of sbatch in full"),
        (["--nodes", "2"], "'2' is not understood"),
        (["--array=0-3"], "slurm/sweep.sbatch runs a grid"),
        (["--launcher=mpirun"], "none of srun, torchrun"),
        (["run.round=5"], "did you mean run.rounds?"),
        (["--time", "run.dir=x"], "--time has no value; write --time=VALUE"),
        (["--time="], "--time= has no value; write --time=VALUE"),
        (["--nodes=", "run.dir=x"], "--nodes= has no value; write --nodes=VALUE"),
        (["--config=none.yaml"], "none.yaml does not exist"),
        (["run.dir=held"], "already holds a run; set run.resume=auto"),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_one_line(
    arguments: list[str],
    words: str,
    submit: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "metrics.jsonl").touch()
    assert submit.main(arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert words in said
    assert [path.name for path in tmp_path.rglob("*")] == ["held", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["SBATCH_TIMELIMIT=30:00"], ""),
        (["SBATCH_TIMELIMIT=2:00:00"], "--time=2:00:00 is longer than 1:00:00"),
        (["SBATCH_TIMELIMIT=2:00:00", "--time=10:00"], ""),
        (["SBATCH_PARTITION=short", "--time=1:00:00"], "the limit of partition short"),
        (["SBATCH_PARTITION=short", "--partition=long"], ""),
        ([], "--time=24:00:00 is longer than 1:00:00, the limit of partition debug"),
        (["--time=61"], "--time=61 is longer than 1:00:00"),
        (["--time=1:00:00"], ""),
        (["--partition=long,short"], ""),
        (["--partition=short"], "add --time=30:00 or --partition=NAME"),
        (["--partition=endless"], ""),
        (["--partition=unknown"], ""),
    ],
)
def test_a_time_beyond_the_partition_s_limit_is_refused(
    flags: list[str],
    words: str,
    submit: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SLURM may accept such a job and never start it."""
    sinfo = tmp_path / "bin" / "sinfo"
    sinfo.parent.mkdir()
    limits = ("debug*|1:00:00", "long|2-00:00:00", "short|30:00", "endless|infinite")
    sinfo.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(f"'{one}'" for one in limits) + "\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sinfo.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    for variable in [flag for flag in flags if flag.startswith("SBATCH")]:
        monkeypatch.setenv(*variable.split("="))
    code = submit.main(["--dry-run", *(flag for flag in flags if flag.startswith("--"))])
    said = capsys.readouterr().err
    assert code == (2 if words else 0), said
    assert words in said
    assert len(said.splitlines()) == bool(words)


@pytest.fixture
def fake_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that takes every job, and the file with its arguments; there is no job in the queue."""
    said = tmp_path / "said"
    commands = {"sbatch": f"printf '%s\\n' \"$@\" > {said}; echo 7", "squeue": ":", "sinfo": ":"}
    (tmp_path / "bin").mkdir()
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return said


def test_flags_win_over_the_environment(submit: ModuleType, fake_sbatch: Path) -> None:
    """A variable such as SBATCH_TIMELIMIT wins over a line of the script, and an argument over both."""
    flags = ["--time=1:00:00", "--comment=a b", "--exclusive"]
    assert submit.main([*flags, "run.dir=run"]) == 0
    *given, script = fake_sbatch.read_text().splitlines()
    code = Path(script).parent / "code"
    assert {"--parsable", *flags[:2], f"--chdir={code}"} <= set(given)
    assert "#SBATCH --exclusive" in Path(script).read_text().splitlines()


@pytest.mark.parametrize(
    "content", ["[]", "1", '{"job": []}', '{"job": 1e999}', "[" * 100_000, "\udcff", "{}"]
)
def test_a_damaged_record_of_an_earlier_job_is_passed_over(
    content: str, submit: ModuleType, fake_sbatch: Path, tmp_path: Path
) -> None:
    record = tmp_path / "run" / "jobs" / "001" / "submitted.json"
    record.parent.mkdir(parents=True)
    (tmp_path / "run" / "jobs" / "1²").mkdir()
    record.write_bytes(content.encode(errors="surrogateescape"))
    assert submit.main(["run.dir=run"]) == 0
    assert "/jobs/002/job.sbatch" in fake_sbatch.read_text()


def test_a_pipe_in_the_place_of_a_record_blocks_nothing(fake_sbatch: Path, tmp_path: Path) -> None:
    record = tmp_path / "run" / "jobs" / "001" / "submitted.json"
    record.parent.mkdir(parents=True)
    os.mkfifo(record)
    command = [sys.executable, str(SLURM / "submit.py"), "run.dir=run"]
    subprocess.run(command, env=environment(), timeout=30, check=True)
    assert "/jobs/002/job.sbatch" in fake_sbatch.read_text()


# -- with SLURM ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three virtual nodes of two cores, or a skip with the reason."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without any stop, in this process, to compare stopped runs with."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(environment()):
            patch.delenv(name)
        assert main([*DIGITS, f"run.rounds={ROUNDS}", f"run.dir={folder}"]) == 0
    return folder


def job_environment(folder: Path, slow: bool = False) -> dict[str, str]:
    """Return what jobs of the folder see; `slow`: with a python that leaves time for signals."""
    python = Path(sys.executable)
    if slow:
        python = folder / "python"
        text = SLOW_PYTHON.replace("SLOW", str(folder / "slow.py"))
        python.write_text(text.replace("PYTHON ", f"{sys.executable} "))
        python.chmod(0o755)
        (folder / "slow.py").write_text(SLOW)
    return environment(PYTHONPATH=str(ROOT), COBO_PYTHON=str(python))


def sbatch(cluster: Cluster, folder: Path, *command: str, slow: bool = False) -> str:
    """Submit in `folder` and return the job id."""
    env = job_environment(folder, slow)
    done = cluster.run("sbatch", "--parsable", *command, cwd=folder, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(run: Path) -> Mapping[str, Any]:
    """Return status.json; empty while there is none."""
    try:
        found: Mapping[str, Any] = json.loads((run / "status.json").read_text())
    except OSError:
        return {}
    return found


def wait_for_round(cluster: Cluster, job: str, run: Path, r: int) -> None:
    """Wait until the run's log holds round r; fail at once if the job ends before."""
    folder = run.parent if (run.parent / "python").exists() else run.parent.parent

    def there() -> bool:
        state = cluster.job(job).get("JobState")
        assert state in ("PENDING", "CONFIGURING", "RUNNING"), f"{state}: {words(folder)}"
        log = run / "metrics.jsonl"
        return log.exists() and f'"event": "round", "round": {r},' in log.read_text()

    wait_for(there, STATE_TIMEOUT_SECONDS, f"round {r}")


def words(folder: Path) -> str:
    """Return the ends of all logs below a folder, for a failed assertion."""
    logs = sorted(folder.rglob("*.log"))
    return "\n".join(f"{one.name}: {one.read_text(errors='replace')[-2000:]}" for one in logs)


def rank_logs(run: Path) -> list[str]:
    """Return the names of the ranks' logs."""
    return sorted(path.name for path in (run / "logs").glob("*_rank_*.log"))


def test_two_nodes_with_frozen_code_and_config(cluster: Cluster, tmp_path: Path) -> None:
    """submit.py: two nodes train with the copy of the code; what it printed is true."""
    run = tmp_path / "run"
    flags = ["--nodes=2", "--ntasks-per-node=1", "--time=10", "--job-name=two"]
    command = [sys.executable, str(SLURM / "submit.py"), *flags, *DIGITS, "run.dir=run"]
    env = environment() | {"COBO_PYTHON": sys.executable}
    done = cluster.run(*command, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    job = re.search(r"^job +(\d+)$", done.stdout, re.MULTILINE)[1]  # type: ignore[index]
    frozen = run / "jobs" / "001"
    assert json.loads((frozen / "submitted.json").read_text())["job"] == int(job)
    second = cluster.run(*command, "run.overwrite=true", cwd=tmp_path, **env)
    assert second.returncode == 2
    assert f"job {job} in run.dir={run} is " in second.stderr

    ended = cluster.wait(job, "COMPLETED", "FAILED", seconds=STATE_TIMEOUT_SECONDS)
    assert ended["JobState"] == "COMPLETED", words(tmp_path)
    assert status(run)["exit_code"] == 0
    env_json = json.loads((run / "env.json").read_text())
    assert (env_json["launcher"], len(env_json["ranks"])) == ("srun", 2)
    assert env_json["git_revision"] == (frozen / "code" / "REVISION").read_text().strip()
    assert ended["NodeList"] == "n[1-2]"
    assert rank_logs(run) == [f"job_{job}_rank_0.log", f"job_{job}_rank_1.log"]
    assert "run folder" in (run / "logs" / f"job_{job}_rank_0.log").read_text()
    assert (
        f"rank 0 at 127.0.0.1:{20000 + int(job) % 10000}"
        in (run / "logs" / f"job_{job}.log").read_text()
    )
    assert load_config(str(frozen / "config.yaml"), []).run_dir == run


@pytest.mark.parametrize("script", ["train.sbatch", "train_torchrun.sbatch"])
def test_a_signal_requeues_and_the_next_start_goes_on(
    script: str, cluster: Cluster, whole: Path, tmp_path: Path
) -> None:
    """USR1, as two minutes before the time limit: in the end the run is as if never stopped."""
    run = tmp_path / "run"
    shape = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=10"]
    arguments = [*DIGITS, f"run.rounds={ROUNDS}", "run.dir=run"]
    job = sbatch(cluster, tmp_path, *shape, str(SLURM / script), *arguments, slow=True)
    wait_for_round(cluster, job, run, 3)
    cluster.call("scancel", "--signal=USR1", job)
    waits = cluster.wait(
        job, "PENDING", "FAILED", "COMPLETED", "CANCELLED", seconds=STATE_TIMEOUT_SECONDS
    )
    assert (waits["JobState"], waits["Restarts"]) == ("PENDING", "1"), words(tmp_path)
    assert status(run)["exit_code"] == 75
    assert "SIGUSR1" in status(run)["reason"]
    assert not (run / "summary.json").exists()

    cluster.start_now(job)
    ended = cluster.wait(job, "COMPLETED", "FAILED", seconds=STATE_TIMEOUT_SECONDS)
    assert ended["JobState"] == "COMPLETED", words(tmp_path)
    assert_same(whole, run)
    resumed = json.loads((run / "env.json").read_text())["resumed"]
    assert len(resumed) == 1
    assert 3 <= resumed[0]["round"] < ROUNDS


def test_a_pre_empted_job_is_requeued_and_goes_on(
    cluster: Cluster, whole: Path, tmp_path: Path
) -> None:
    """A job of a higher partition takes both nodes: SIGTERM, a checkpoint, the queue, and on."""
    run = tmp_path / "run"
    shape = ["--nodes=3", "--ntasks-per-node=1", "--exclusive", "--time=10"]
    arguments = [*DIGITS, f"run.rounds={ROUNDS}", "run.dir=run"]
    job = sbatch(cluster, tmp_path, *shape, str(SLURM / "train.sbatch"), *arguments, slow=True)
    wait_for_round(cluster, job, run, 3)
    wins = sbatch(cluster, tmp_path, "--partition=high", "--nodes=3", "--exclusive", "--wrap=true")
    cluster.wait(wins, "COMPLETED", seconds=STATE_TIMEOUT_SECONDS)
    waits = cluster.wait(
        job, "PENDING", "FAILED", "COMPLETED", "CANCELLED", seconds=STATE_TIMEOUT_SECONDS
    )
    assert (waits["JobState"], waits["Restarts"]) == ("PENDING", "1"), words(tmp_path)
    assert "SIGTERM" in status(run)["reason"]
    cluster.start_now(job)
    ended = cluster.wait(job, "COMPLETED", "FAILED", seconds=STATE_TIMEOUT_SECONDS)
    assert ended["JobState"] == "COMPLETED", words(tmp_path)
    assert_same(whole, run)


def test_an_array_runs_a_grid_point_each_and_one_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """Two seeds as two tasks; USR1 to the first stops and requeues that one alone."""
    # A sweep refuses a key that is given twice, where a training takes the last.
    common = [setting for setting in DIGITS if not setting.startswith("run.rounds=")]
    grid = [*common, f"run.rounds={ROUNDS}", "seed=0,1", "--out", "sweep"]
    script = [str(SLURM / "sweep.sbatch"), *grid]
    array = sbatch(cluster, tmp_path, "--array=1-2", "--time=10", *script, slow=True)
    runs = [tmp_path / "sweep" / f"digits-cobo-s{seed}" for seed in (0, 1)]
    wait_for_round(cluster, f"{array}_1", runs[0], 3)
    cluster.call("scancel", "--signal=USR1", f"{array}_1")
    waits = cluster.wait(
        f"{array}_1", "PENDING", "FAILED", "COMPLETED", seconds=STATE_TIMEOUT_SECONDS
    )
    assert (waits["JobState"], waits["Restarts"]) == ("PENDING", "1"), words(tmp_path)
    assert status(runs[0])["exit_code"] == 75
    cluster.start_now(f"{array}_1")
    for task in (1, 2):
        ended = cluster.wait(
            f"{array}_{task}", "COMPLETED", "FAILED", seconds=STATE_TIMEOUT_SECONDS
        )
        assert ended["JobState"] == "COMPLETED", words(tmp_path)
    assert cluster.job(f"{array}_2")["Restarts"] == "0"
    assert [status(run)["exit_code"] for run in runs] == [0, 0]
    assert [row["round"] for row in rows(runs[0], "round")] == list(range(1, ROUNDS + 1))
    assert len(json.loads((runs[0] / "env.json").read_text())["resumed"]) == 1
    assert not (tmp_path / "sweep" / "sweep.csv").exists(), "tables are written at the end"


def test_scancel_ends_the_job_with_a_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*DIGITS, f"run.rounds={ROUNDS}", "run.dir=run"]
    shape = ["--nodes=2", "--ntasks-per-node=1", "--time=10"]
    job = sbatch(cluster, tmp_path, *shape, str(SLURM / "train.sbatch"), *arguments, slow=True)
    wait_for_round(cluster, job, run, 3)
    cluster.call("scancel", job)
    ended = cluster.wait(job, "CANCELLED", "FAILED", "COMPLETED", seconds=STATE_TIMEOUT_SECONDS)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), words(tmp_path)
    wait_for(lambda: status(run), STATE_TIMEOUT_SECONDS, "status.json")
    assert status(run)["exit_code"] == 75
    assert "SIGTERM" in status(run)["reason"]
    assert list((run / "checkpoints").glob("round-*/manifest.json"))
    assert cluster.job(job)["JobState"] == "CANCELLED", "and is not requeued"


def test_a_rank_that_dies_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*DIGITS, "run.rounds=100000", "run.dir=run"]
    shape = ["--nodes=2", "--ntasks-per-node=1", "--time=10"]
    job = sbatch(cluster, tmp_path, *shape, str(SLURM / "train.sbatch"), *arguments, slow=True)
    wait_for_round(cluster, job, run, 3)
    os.kill(rank_process(job, 1), signal.SIGKILL)
    killed = time.monotonic()
    ended = cluster.wait(
        job, "FAILED", "COMPLETED", "CANCELLED", "PENDING", seconds=STATE_TIMEOUT_SECONDS
    )
    took = time.monotonic() - killed
    assert took < 30, words(tmp_path)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), words(tmp_path)
    assert status(run)["exit_code"] == 1
    assert "lost contact" in status(run)["reason"]


def rank_process(job: str, rank: int) -> int:
    """Return the process of one rank of a job, by its environment."""
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            inside = (entry / "environ").read_text(errors="replace").split("\0")
            if wanted <= set(inside) and "slow.py" in (entry / "cmdline").read_text():
                return int(entry.name)
    raise AssertionError(f"no process of rank {rank} in job {job}")
