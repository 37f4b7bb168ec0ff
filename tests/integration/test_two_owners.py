"""Two runs on one folder: a living owner is not disturbed, a stale one is replaced and writes no more.

Also what else a hostile cluster leaves in a run folder: pipes, links, huge files, files that stay.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from launching import environment
from problems import QUIET, models, rows, write_quadratic

from cobo_dist.checkpoint import resume
from cobo_dist.cli.train import main
from cobo_dist.storage import owner_record
from cobo_dist.storage.owner import Ownership

ROUNDS = 12
REPOSITORY = Path(__file__).parents[2]

ELSEWHERE = """\
import os, signal, sys
from unittest import mock
from cobo_dist.cli.train import main
from cobo_dist.checkpoint.writer import CheckpointWriter
from cobo_dist.storage import checkpoint_format, owner, owner_record
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tracking.metrics_buffer import MetricsBuffer
from cobo_dist.training import figures

owner_record.machine_id = owner.machine_id = lambda: "another boot"
place, at = {
    "round": (MetricsBuffer, "round"),
    "commit": (checkpoint_format, "complete"),
    "prune": (CheckpointWriter, "_remove_old"),
    "models": (RunDir, "saving_model"),
    "status": (RunDir, "write_status"),
    "rename": (RunDir, "publish"),
    "figures": (figures, "draw_figures"),
}[sys.argv[1]]
real, calls = getattr(place, at), 0

def stop_before(*args, **more):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*args, **more)

setattr(place, at, stop_before)
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - environment().keys():
        monkeypatch.delenv(name)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    problem = write_quadratic(tmp_path / "problem.npz")
    return [*QUIET, "task.name=quadratic", f"task.file={problem}", f"run.rounds={ROUNDS}",
            "run.checkpoint_every=3", "run.eval_every=3", "run.log_weights_every=3", "log.flush_every=1",
            "comm.deterministic=true", "run.checkpoint_writing=foreground"]  # fmt: skip


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Start python; kill it in the end, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment(PYTHONPATH=str(REPOSITORY)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(what: Any, process: subprocess.Popen[str], seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def state(process: subprocess.Popen[str]) -> str:
    found = owner_record.start_ticks(process.pid)
    return found[0] if found else ""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_equals_one_run(folder: Path, arguments: list[str]) -> None:
    """Compare models, W and rows with those of a run without interruption, bit by bit."""
    whole = folder.with_name("whole")
    assert main([*arguments, f"run.dir={whole}"]) == 0
    mine, theirs = models(folder), models(whole)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(value, theirs[name]) for name, value in mine.items())
    assert np.array_equal(np.load(folder / "W.npz")["weights"], np.load(whole / "W.npz")["weights"])
    assert [row["round"] for row in rows(folder, "round")] == list(range(1, ROUNDS + 1))
    assert rows(folder, "eval") == rows(whole, "eval")


# -- two owners -----------------------------------------------------------------------------------------


def test_a_living_run_is_not_disturbed_and_a_killed_one_resumed_at_once(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    both = [*arguments, f"run.dir={folder}"]
    first = ["-m", "cobo_dist.train", *both, "run.rounds=1000000", "log.flush_every=1000"]
    with started(*first, "run.checkpoint_every=100000") as process:
        wait_for((folder / "config.yaml").exists, process)
        config = (folder / "config.yaml").read_bytes()
        for way in ("run.resume=auto", "run.overwrite=true", "run.resume=never"):
            assert main([*both, way]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            host = os.uname().nodename
            assert line.startswith(
                f"error: run.dir={folder} is in use by process {process.pid} on {host}"
            )
            assert f"end it with kill {process.pid}" in line
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: state(process) == "T", process)
        assert main([*both, "run.resume=auto"]) == 2
        assert f"it is suspended: end it with kill -KILL {process.pid}" in capsys.readouterr().err
        assert process.poll() is None
        assert (folder / "config.yaml").read_bytes() == config
        assert os.listdir(folder / "owner") == ["000001.json"]
        process.kill()
        process.wait()
    began = time.monotonic()
    assert main([*both, "run.overwrite=true"]) == 0
    assert time.monotonic() - began < owner_record.STALE_SECONDS
    assert os.listdir(folder / "owner") == ["000002.json"]


def test_a_folder_that_is_taken_while_this_run_starts_is_refused(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two starts at once: both find no owner, and the second to claim the folder is refused."""
    folder = tmp_path / "run"
    others: list[Ownership] = []
    real = resume.find

    def find(*args: Any) -> Any:
        others.append(Ownership.acquire(folder, seen=0, job="17"))
        return real(*args)

    with mock.patch.object(resume, "find", find):
        assert main([*arguments, f"run.dir={folder}", "run.resume=auto"]) == 2
    others[0].check()
    others[0].release()
    assert f"was taken by process {os.getpid()} on" in capsys.readouterr().err
    assert os.listdir(folder) == ["owner"]


MOMENTS = [
    ("round", "5"), ("commit", "2"), ("prune", "3"), ("models", "2"), ("status", "1"), ("rename", "4"),
    ("figures", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("moment", "times"), MOMENTS)
def test_a_run_that_wakes_up_after_its_successor_has_finished_changes_nothing(
    moment: str, times: str, tmp_path: Path, arguments: list[str]
) -> None:
    """Its host was suspended. The successor, on another host, is known to be the owner."""
    folder = tmp_path / "run"
    # Before it draws figures, the first run has finished: only an overwrite follows it.
    way = "run.overwrite=true" if moment == "figures" else "run.resume=auto"
    both = [*arguments, f"run.dir={folder}", way, "log.tensorboard=true"]
    with started("-c", ELSEWHERE, moment, times, *both, "log.figures=true") as process:
        wait_for(lambda: state(process) == "T", process)
        long_ago = time.time() - owner_record.STALE_SECONDS - 1
        os.utime(owner_record.record_path(folder, 1), (long_ago, long_ago))
        assert main(both) == 0
        before = contents(folder)
        process.send_signal(signal.SIGCONT)
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 1
        assert f"error: this run folder was taken over by process {os.getpid()} on" in err
        assert "Traceback" not in err
    assert contents(folder) == before
    assert '"done"' in (folder / "status.json").read_text()
    assert_equals_one_run(folder, arguments)


def test_a_run_that_is_taken_over_while_it_runs_ends(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its heartbeat was late: it learns of its successor at the next flush, and both leave one run."""
    folder = tmp_path / "run"
    with started("-c", ELSEWHERE, "round", "5", *arguments, f"run.dir={folder}") as process:
        wait_for(lambda: state(process) == "T", process)
        owner = Ownership.acquire(folder, seen=1, job="23")
        process.send_signal(signal.SIGCONT)
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 1
        assert "(job 23)" in err
        owner.release()
    assert not (folder / "status.json").exists()
    assert not (folder / "errors").exists()
    assert main([*arguments, f"run.dir={folder}", "run.resume=auto"]) == 0
    assert_equals_one_run(folder, arguments)


# -- a full disk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "are free; make room, or "), (errno.EDQUOT, "your disk quota is used up")],
)
@pytest.mark.parametrize("writer", ["owner", "new folder", "resumed folder"])
def test_a_full_disk_at_the_start_is_no_fault_of_the_folder(
    writer: str,
    number: int,
    words: str,
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    if writer == "resumed folder":
        assert main([*arguments, f"run.dir={folder}"]) == 0
        (folder / "status.json").unlink()

    def refuse(*given: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    place = {
        "owner": "cobo_dist.storage.owner._write_new",
        "new folder": "pathlib.Path.touch",
        "resumed folder": "cobo_dist.storage.run_dir._copy",
    }
    monkeypatch.setattr(place[writer], refuse)
    capsys.readouterr()
    assert main([*arguments, f"run.dir={folder}", "run.resume=auto"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "make room, or " in line
    assert "another run.dir" in line
    assert "remove it" not in line


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "flush", "close"])
def test_a_full_disk_ends_tensorboard_and_not_the_run(
    method: str,
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def refuse(*given: object, **more: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    folder = tmp_path / "run"
    monkeypatch.setattr(SummaryWriter, method, refuse)
    assert main([*arguments, f"run.dir={folder}", "log.tensorboard=true"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("your disk quota is used up") == (method != "close")
    assert '"start"' in (folder / "metrics.jsonl").read_text().splitlines()[0]
    warned = [row for row in rows(folder, "warning") if row["kind"] == "tensorboard"]
    assert len(warned) == (method != "close")
    assert_equals_one_run(folder, [*arguments, "log.tensorboard=false"])


# -- hostile files --------------------------------------------------------------------------------------

IN_THE_FOLDER = ("metrics.jsonl", "config.yaml", "env.json", "status.json", "summary.json", "W.npz")
IN_A_CHECKPOINT = ("manifest.json", "logger.json", "client_00001.safetensors", "config.yaml")


def plant(path: Path, kind: str, outside: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(outside)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)


@pytest.fixture
def stopped(tmp_path: Path, arguments: list[str]) -> Path:
    """A run that looks as if it had been killed after its last checkpoint."""
    folder = tmp_path / "run"
    assert main([*arguments, f"run.dir={folder}"]) == 0
    (folder / "status.json").unlink()
    return folder


@pytest.mark.parametrize("kind", ["pipe", "link", "sparse"])
def test_hostile_files_are_refused_or_passed_over(
    kind: str, stopped: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """None hangs, is followed, is read into memory, or ends in a traceback; each message names the file."""
    outside = stopped.with_name("outside.txt")
    outside.write_text("keep this")
    places = [Path(name) for name in IN_THE_FOLDER]
    places += [Path("checkpoints", f"round-{ROUNDS:09d}", name) for name in IN_A_CHECKPOINT]
    for place in places:
        folder = stopped.with_name("hostile")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stopped, folder)
        plant(folder / place, kind, outside)
        began = time.monotonic()
        code = main([*arguments, f"run.dir={folder}", "run.resume=auto"])
        assert time.monotonic() - began < 20
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert "batch_size" not in said.err
        if place.parent.name:
            assert code == 0, (place, said)
            assert f"{place} " in said.out
        elif kind == "sparse" and place.name == "metrics.jsonl":
            assert code == 2
            assert f"{place} is not as it was" in said.err
        elif kind != "sparse":
            assert code == 2, (place, said)
            assert f"{place} is a" in said.err
        assert outside.read_text() == "keep this"


@pytest.mark.parametrize("target", ["folder of the owner", "file", "nothing"])
def test_a_link_to_no_folder_of_a_run_is_refused(
    target: str, stopped: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outside = stopped.with_name("outside")
    name = "checkpoints"
    if target == "folder of the owner":
        shutil.copytree(stopped, outside)
        name = "owner"
    elif target == "file":
        outside.write_text("keep this")
    shutil.rmtree(stopped / name)
    (stopped / name).symlink_to(outside)
    before = contents(outside) if outside.is_dir() else {}
    for way in ("run.resume=auto", "run.overwrite=true"):
        assert main([*arguments, f"run.dir={stopped}", way]) == 2
        assert f"{name} is a symbolic link" in capsys.readouterr().err
    assert (contents(outside) if outside.is_dir() else {}) == before


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A folder in another file system, where there is one: a rename between the two fails."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def test_folders_that_are_links_keep_their_files_elsewhere(
    other_disk: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """As users link checkpoints to a scratch disk: started, resumed, overwritten; foreign files stay."""
    folder, target = tmp_path / "run", other_disk / "run"
    target.mkdir()
    folder.symlink_to(target)
    for name in ("checkpoints", "models", "tensorboard", "figures", "errors"):
        (other_disk / name).mkdir()
        (folder / name).symlink_to(other_disk / name)
        (other_disk / name / "foreign").write_text("keep this")
    given = [*arguments, f"run.dir={folder}", "log.tensorboard=true"]
    assert main(given) == 0, "no run.overwrite: there was no run"
    assert len(list((other_disk / "models").glob("client_*"))) == 7
    (folder / "status.json").unlink()
    shutil.rmtree(other_disk / "checkpoints" / f"round-{ROUNDS:09d}")
    assert main([*given, "run.resume=auto"]) == 0
    assert_equals_one_run(folder, arguments)
    assert main([*given, "run.overwrite=true", "run.rounds=3"]) == 0
    assert [one.name for one in (folder / "checkpoints").glob("round-*")] == ["round-000000003"]
    assert len(list((folder / "tensorboard").glob("events*"))) == 1
    for name in ("checkpoints", "models", "tensorboard", "figures", "errors"):
        assert (folder / name).is_symlink()
        assert (other_disk / name / "foreign").read_text() == "keep this"
        assert not list((other_disk / name).glob("*.part"))


def test_what_a_lost_run_left_in_a_linked_folder_is_not_replaced_unasked(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, scratch = tmp_path / "run", tmp_path / "scratch"
    (scratch / "round-000000003").mkdir(parents=True)
    folder.mkdir()
    (folder / "checkpoints").symlink_to(scratch)
    assert main([*arguments, f"run.dir={folder}"]) == 2
    assert "holds checkpoints but no run" in capsys.readouterr().err


def test_folders_too_deep_for_a_path_are_removed(stopped: Path, arguments: list[str]) -> None:
    here = Path.cwd()
    for name in ("models", "checkpoints/round-000000002"):
        (stopped / name).mkdir(exist_ok=True)
        os.chdir(stopped / name)
        try:
            for _ in range(1500):
                os.mkdir("deep")
                os.chdir("deep")
            Path("link").symlink_to(stopped)
        finally:
            os.chdir(here)
    assert main([*arguments, f"run.dir={stopped}", "run.overwrite=true"]) == 0
    assert_equals_one_run(stopped, arguments)


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds up neither the run nor a later resume."""
    real = shutil.rmtree

    def refuse(path: Any, *rest: Any, **more: Any) -> None:
        if ".old" in Path(path).name:
            raise PermissionError(1, "Operation not permitted", str(path))
        real(path, *rest, **more)

    folder = tmp_path / "run"
    with mock.patch("shutil.rmtree", refuse):
        assert main([*arguments, f"run.dir={folder}"]) == 0
        said = capsys.readouterr().out
        assert "round-000000003 cannot be removed: Operation not permitted; the run goes on" in said
        assert "no checkpoint after" not in said
        (folder / "status.json").unlink()
        assert main([*arguments, f"run.dir={folder}", "run.resume=auto"]) == 0
    assert_equals_one_run(folder, arguments)
    names = sorted(path.name for path in (folder / "checkpoints").glob("round-?????????"))
    assert names == ["round-000000009", "round-000000012"]
