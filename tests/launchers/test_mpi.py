"""MPI as the data plane, under a real mpirun: the same numbers as by gloo, and every way to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launching import BIN, TRAIN, mpirun, said, start, torchrun
from pool import RankPool
from problems import QUIET, models, train

from cobo_dist.comm.config import CommConfig
from cobo_dist.comm.session import Session, check_backend, open_session
from cobo_dist.comm.startup.devices import choose_device
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.comm.transports import mpi_world
from cobo_dist.comm.transports.base import LostContact
from cobo_dist.comm.transports.mpi_transport import open_mpi
from cobo_dist.errors import ConfigError, HostConfigError

pytestmark = pytest.mark.mpi
MPI = "comm.backend=mpi"
DIGITS = ("run.rounds=12", "run.eval_every=0", "run.engine=one_by_one", "run.threads=1",
          "algorithm.sampling.name=all", "run.dir=out")  # fmt: skip


# -- the same numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3])
def test_digits_by_mpi_are_bitwise_those_by_gloo(
    gloo_pool: RankPool, tmp_path: Path, ranks: int
) -> None:
    done = start([*mpirun(ranks), "-m", TRAIN, *QUIET, *DIGITS, MPI], tmp_path)
    assert done.returncode == 0, done.stderr
    assert said(done.stderr) == []
    assert done.stdout.count("run folder") == 1, "only rank 0 speaks"
    gloo_pool.run(ranks, train, [*DIGITS, f"run.dir={tmp_path / 'gloo'}"])
    mpi, gloo = tmp_path / "out", tmp_path / "gloo"
    found, expected = models(mpi), models(gloo)
    assert found.keys() == expected.keys()
    assert len(found) == 8 * 6
    for name, value in expected.items():
        assert value.tobytes() == found[name].tobytes(), name
    weights = [np.load(folder / "W.npz")["weights"] for folder in (mpi, gloo)]
    assert weights[0].tobytes() == weights[1].tobytes()
    assert (weights[0] < 1).any(), "W has moved"
    env, by_gloo = (json.loads((folder / "env.json").read_text()) for folder in (mpi, gloo))
    assert env["launcher"] == "mpirun"
    assert env["backend"].startswith("mpi: ")
    assert f"mpi4py {env['versions']['mpi4py']}" in env["backend"]
    assert by_gloo["backend"] == "gloo"
    sent = [
        json.loads((folder / "summary.json").read_text())["bytes_sent"] for folder in (mpi, gloo)
    ]
    assert sent[0] == sent[1] > 0


def test_one_rank_needs_no_mpi(tmp_path: Path) -> None:
    """It has no one to send to, so mpi4py is not loaded."""
    probe = (
        "import sys; from cobo_dist.train import main; code = main(sys.argv[1:]);"
        "sys.exit(code or 'mpi4py' in sys.modules)"
    )
    arguments = [*QUIET, "run.rounds=1", "run.dir=out", MPI]
    done = start([sys.executable, "-c", probe, *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "env.json").read_text())["backend"] == "none: one rank"


# -- messages ----------------------------------------------------------------------------------------


def odd_messages(session: Session) -> list[str]:
    """Rank 1 sends 3 numbers where rank 0 has a box of 5, then 5 where it has 3."""
    transport, told = session.transport, []
    for sent, due in ((3, 5), (5, 3)):
        if transport.rank == 1:
            transport.exchange({0: torch.ones(sent)}, {}, "pairs").wait()
            continue
        try:
            transport.exchange({}, {1: torch.ones(due)}, "pairs").wait()
        except (ValueError, LostContact) as error:
            told.append(str(error))
    return told


def test_a_message_of_another_size_is_refused(mpi_pool: RankPool) -> None:
    short, long = mpi_pool.run_broken(2, odd_messages)[0]
    assert "12 bytes came from rank 1 where 20 were due" in short
    assert "exchanging pairs with rank(s) 1" in long


def in_place(session: Session) -> bool:
    """Messages of every dtype land in the box itself, whatever its place in a larger tensor.

    Rank r sends rows 1 and 2 of a [4, 1000] matrix of r + 1; the rows 0 and 3 of the box stay 0.
    """
    transport = session.transport
    rank, peer = transport.rank, 1 - transport.rank
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32):
        x = torch.full((4, 1000), rank + 1, dtype=dtype)
        box = torch.zeros(4, 1000, dtype=dtype)
        transport.exchange({peer: x[1:3]}, {peer: box[1:3]}, "mixing").wait()
        assert (box[1:3] == peer + 1).all()
        assert not box[[0, 3]].any()
    leaf = torch.full((3,), float(rank), requires_grad=True)  # autograd is none of its business
    box = torch.zeros(3)
    transport.exchange({peer: leaf}, {peer: box}, "mixing").wait()
    assert not torch.distributed.is_initialized()
    return bool((box == peer).all())


def test_messages_land_in_place(mpi_pool: RankPool) -> None:
    assert mpi_pool.run(2, in_place) == [True, True]


def two_under_way(session: Session) -> bool:
    """Two exchanges of one pair of ranks are under way at once, and waited for in either order."""
    transport, peer = session.transport, 1 - session.transport.rank
    boxes = [torch.zeros(200_000), torch.zeros(3)]
    rows = [torch.full_like(box, number + 1) for number, box in enumerate(boxes)]
    pending = [transport.exchange({peer: row}, {peer: box}, "pairs")
               for row, box in zip(rows, boxes, strict=True)]  # fmt: skip
    for one in pending if peer else reversed(pending):
        one.wait()
        one.wait()  # again is nothing
    return all(torch.equal(row, box) for row, box in zip(rows, boxes, strict=True))


def test_exchanges_match_in_order(mpi_pool: RankPool) -> None:
    assert mpi_pool.run(2, two_under_way) == [True, True]


# -- refusals ----------------------------------------------------------------------------------------


def launched(launcher: str, rank: int = 0, size: int = 2) -> Launch:
    return Launch(launcher, rank, size, rank, size, "127.0.0.1", 1)


@pytest.mark.parametrize("launcher", ["torchrun", "python"])
def test_ranks_that_no_mpirun_started_are_refused(launcher: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"needs ranks that mpirun started, but {launcher}.*gloo"
    ):
        check_backend("mpi", launched(launcher))
    check_backend("mpi", launched(launcher, size=1))
    check_backend("gloo", launched(launcher))
    check_backend("mpi", launched("mpirun"))


def test_under_torchrun_it_is_refused_in_one_line(tmp_path: Path) -> None:
    done = start([*torchrun(2), *QUIET, "run.dir=out", MPI], tmp_path)
    assert len(said(done.stderr)) == 1, done.stderr
    assert "mpirun -n 2 python -m cobo_dist.train" in said(done.stderr)[0]
    assert list(tmp_path.iterdir()) == []


def test_mpi_takes_a_gpu_only_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda", "mpi", launched("mpirun")).type == "cuda"
    assert choose_device("auto", "mpi", launched("mpirun")) == torch.device("cpu")


def test_without_mpi4py_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_world, "_world", None)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    config, cpu = CommConfig(backend="mpi"), torch.device("cpu")
    with (
        pytest.raises(
            ConfigError, match=r"mpi4py cannot be loaded.*pip install 'cobo_dist\[mpi\]'"
        ),
        open_session(launched("srun"), config, cpu),
    ):
        pass


def test_an_old_mpi4py_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_world, "_world", None)
    old = SimpleNamespace(MPI=None, __version__="3.1.6")
    monkeypatch.setitem(sys.modules, "mpi4py", old)
    with pytest.raises(ConfigError, match=r"mpi4py 3\.1\.6 cannot send messages of 2 GiB"):
        mpi_world.start_mpi("comm.backend=mpi")


@pytest.mark.parametrize(
    ("rank", "size", "kind"), [(0, 1, ConfigError), (0, 3, ConfigError), (1, 2, HostConfigError)]
)
def test_ranks_that_mpi_counts_differently_are_refused(
    monkeypatch: pytest.MonkeyPatch, rank: int, size: int, kind: type[ConfigError]
) -> None:
    """For one, srun without a word to MPI: MPI takes each process for a run of one."""
    comm = SimpleNamespace(rank=rank, size=size)
    monkeypatch.setattr(mpi_world, "_world", mpi_world.MpiWorld(None, comm, None))
    with pytest.raises(ConfigError) as caught, open_mpi(launched("srun"), 1.0):
        pass
    assert type(caught.value) is kind
    assert f"rank {rank} of {size}, but srun as rank 0 of 2" in str(caught.value)
    assert "mpirun" in str(caught.value)


def test_a_refusal_that_all_ranks_agree_on_ends_in_order(tmp_path: Path) -> None:
    """Too many ranks for the clients shows only after the ranks have met; no Abort is needed."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").touch()
    done = start([*mpirun(2), "-m", TRAIN, *QUIET, "run.dir=out", MPI], tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == said(done.stderr), "the launcher has nothing to add"
    assert len(said(done.stderr)) == 1
    assert "already holds a run" in done.stderr


# -- failures ----------------------------------------------------------------------------------------

PLANTED = """
import os, sys, time, signal
import cobo_dist.cli.train as train
from cobo_dist.algorithms.cobo import CoBo
from cobo_dist.comm.transports.mpi_world import exit_barrier, start_mpi
from cobo_dist.errors import ConfigError

how, sound_config, sound_round = sys.argv[1], train.load_config, CoBo.round

def here(*hows):
    if how in hows and start_mpi("the test").comm.rank == 1:
        open("bad_since", "w").write(str(time.time()))
        return True

def bad_config(*given):
    if here("refuses"):
        raise ConfigError("planted")
    if here("crashes"):
        raise SystemError("planted")
    return sound_config(*given)

def bad_round(self, t):
    if t == 3:
        if here("raises"):
            raise ArithmeticError("planted")
        if here("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if here("hangs"):
            time.sleep(1000)
    return sound_round(self, t)

train.load_config, CoBo.round = bad_config, bad_round
exit_barrier(train.main(sys.argv[2:]))
"""


def planted(folder: Path, how: str, *more: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Train 2 ranks of which rank 1 goes wrong in round 4 of a million, or before the first.

    Return also the seconds from then to the end of all.
    """
    arguments = [*QUIET, MPI, "run.rounds=1000000", "run.eval_every=0", "run.dir=out", *more]
    done = start([*mpirun(2), "-c", PLANTED, how, *arguments], folder)
    return done, time.time() - float((folder / "bad_since").read_text())


def test_a_rank_that_raises_ends_the_run(tmp_path: Path) -> None:
    done, seconds = planted(tmp_path, "raises")
    assert done.returncode == 1, done.stderr
    assert seconds < 20, "comm.timeout is 600 s"
    first, second = said(done.stderr)
    assert re.search(r"rank 1 on \S+ failed in round 4: ArithmeticError: planted", first), first
    assert second.startswith("error: rank 1 on ")
    assert "ArithmeticError: planted" in second
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert (status["exit_code"], status["status"]) == (1, "failed")
    assert "ArithmeticError: planted" in status["reason"]
    assert "planted" in (tmp_path / "out" / "errors" / "rank_00001.txt").read_text()


def test_a_rank_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    """Mpirun sees it, and ends the others on its own: no rank is left to write a status."""
    done, seconds = planted(tmp_path, "killed")
    assert done.returncode != 0
    assert seconds < 20
    assert not (tmp_path / "out" / "summary.json").exists()


SILENT_END = """
import os, signal, sys, threading, time

def end():
    early = os.environ["HOW"] == "leaves early"
    while not early and not (os.path.exists("out/metrics.jsonl") and os.path.getsize("out/metrics.jsonl")):
        time.sleep(0.05)
    if early:
        # A module that is being imported is in sys.modules before it has its names.
        while not getattr(sys.modules.get("mpi4py.MPI"), "Is_initialized", bool)():
            time.sleep(0.01)
        os._exit(0)
    if os.environ["HOW"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["HOW"] == "leaves":
        os._exit(0)
    from mpi4py import MPI
    MPI.COMM_WORLD.Abort(int(os.environ["HOW"].removeprefix("aborts ")))

if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "0":
    threading.Thread(target=end, daemon=True).start()
"""


def mpirun_sh(folder: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Train 2 ranks by launch/mpirun.sh, of which rank 0 ends as HOW says."""
    mpirun(2)  # skips where there is none
    (folder / "sitecustomize.py").write_text(SILENT_END)
    script = Path(__file__).parents[2] / "launch" / "mpirun.sh"
    arguments = [
        *QUIET,
        MPI,
        "run.rounds=1000000",
        "run.eval_every=0",
        "run.dir=out",
        "comm.timeout=10",
    ]
    return start(
        ["bash", str(script), *arguments, *more], folder, RANKS="2",
        PYTHONPATH=f"{folder}:{os.environ.get('PYTHONPATH', '')}",
        PATH=f"{BIN}:{os.environ['PATH']}", **environment,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["killed", "aborts 7", "aborts 2", "leaves"])
def test_mpirun_sh_says_why_where_no_rank_is_left_to(tmp_path: Path, how: str) -> None:
    """Mpirun ends all ranks, with a code of its own: 0 by MPICH where a rank leaves with 0."""
    done = mpirun_sh(tmp_path, HOW=how)
    assert done.returncode == 1, done.stderr
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert (status["exit_code"], status["status"]) == (1, "failed")
    assert "before a rank said why" in status["reason"]
    assert len(said(done.stderr)) == 1
    assert not list((tmp_path / "out").glob("*.part"))


def test_mpirun_sh_is_not_done_where_a_rank_leaves_before_the_run_begins(tmp_path: Path) -> None:
    """By MPICH mpirun itself ends with 0 then."""
    done = mpirun_sh(tmp_path, HOW="leaves early")
    assert done.returncode != 0, done.stderr
    assert len(said(done.stderr)) == 1
    assert not (tmp_path / "out" / "status.json").exists()


def test_mpirun_sh_answers_what_trains_nothing(tmp_path: Path) -> None:
    for option, words in (
        ("--version", "cobo_dist "),
        ("--show-run-dir", "/out"),
    ):
        done = mpirun_sh(tmp_path, option)
        assert (done.returncode, done.stderr) == (0, ""), option
        assert done.stdout.count(words) == 1, option


def test_a_rank_that_hangs_is_lost_after_the_time_out(tmp_path: Path) -> None:
    """Rank 1 never comes back, so rank 0, having spoken, ends it."""
    done, seconds = planted(tmp_path, "hangs", "comm.timeout=3")
    assert done.returncode == 1, done.stderr
    assert seconds < 20
    (line,) = said(done.stderr)
    assert "rank 0 lost contact while exchanging" in line
    assert "no answer from rank(s) 1 within comm.timeout=3 s" in line
    assert json.loads((tmp_path / "out" / "status.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(("how", "code"), [("refuses", 2), ("crashes", 1)])
def test_a_rank_that_leaves_before_the_ranks_have_met_ends_the_run(
    tmp_path: Path, how: str, code: int
) -> None:
    """No other rank enters the exit barrier; Abort keeps the exit code, and the others end."""
    done, seconds = planted(tmp_path, how)
    assert done.returncode == code, done.stderr
    assert seconds < 20
    assert ("SystemError: planted" in done.stderr) == (how == "crashes")


@pytest.mark.parametrize(
    ("code", "unfinished", "aborts"),
    [(0, set(), []), (75, set(), []), (2, set(), [2]), (1, set(), [1]), (75, {"message"}, [75])],
)
def test_the_exit_barrier_waits_for_ranks_that_will_arrive(
    monkeypatch: pytest.MonkeyPatch, code: int, unfinished: set[object], aborts: list[int]
) -> None:
    """The others arrive after the time-out for failed ranks: runs that are done or stopped wait for them."""
    answers, aborted = iter([False, False, True]), []
    arrived = SimpleNamespace(Test=lambda: next(answers))
    everyone = SimpleNamespace(Abort=aborted.append)
    mpi = SimpleNamespace(COMM_WORLD=everyone, Exception=RuntimeError)
    exit_comm = SimpleNamespace(Ibarrier=lambda: arrived)
    monkeypatch.setattr(mpi_world, "EXIT_BARRIER_SECONDS", 0.0)
    mpi_world._wait_for_all_ranks(mpi_world.MpiWorld(mpi, None, exit_comm, code, unfinished))
    assert aborted == aborts
