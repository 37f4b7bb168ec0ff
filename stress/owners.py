"""Two owners of one run folder, and owners that wake up after their successor has finished.

A living owner is never disturbed, a dead one is replaced, and one that was suspended changes nothing later.
All runs have two ranks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cobo_dist.storage import owner_record

from .endings import Place, judge
from .outcome import Outcome
from .problem import arguments, differences, is_done, write_problem
from .ranks import Ended, Fault, Run, environment, finished, start, wait_for

RANKS, ROUNDS, EVERY = 2, 60, 10
SLOW_ROUND_SECONDS, SLOWER_ROUND_SECONDS = 0.05, 0.5
"""A round of an owner that has to live while another start, or a sweep, looks at its folder."""
ZOMBIES = {
    "in a round": ("cobo_dist.tracking.metrics_buffer", "MetricsBuffer.round", 35),
    "in the commit of a checkpoint": ("cobo_dist.storage.checkpoint_format", "complete", 3),
    "at the finish": ("cobo_dist.storage.run_dir", "RunDir.write_status", 1),
}
"""Where rank 0 is stopped: a module, a function of it, and before which of its calls."""


def owners(folder: Path, slack: float = 20.0, which: Sequence[str] = ()) -> list[Outcome]:
    """Try two owners in six ways, and an owner that wakes up late at three moments; or those of `which`."""
    place = Place(folder, 60.0, slack, reference=folder / "whole")
    problem = write_problem(folder / "problem.npz")
    place.run = [*arguments(problem, ROUNDS, EVERY), "comm.timeout=60", "log.flush_every=1",
                 "log.tensorboard=true"]  # fmt: skip
    finished(RANKS, [*place.run, f"run.dir={place.reference}"], folder / "logs")
    return [CASES[name](place) for name in which or CASES]


# -- two owners ----------------------------------------------------------------------------------------


def _while_it_lives(place: Place, way: str) -> Outcome:
    out = place.folder / way.replace("=", "_")
    first = _start(place, out, "first", fault=(_slow, (SLOW_ROUND_SECONDS,)))
    _wait_for_checkpoint(out, first)
    ended = _start(place, out, "second", f"run.{way}").end(place.slack)
    wrong = _unharmed(place, out, first)
    return judge(
        f"a second start with run.{way} while the first lives", "refused with 2; the first is unharmed",
        ended, dict.fromkeys(range(RANKS), 2), ["is in use by process", "since"], place.slack, wrong,
    )  # fmt: skip


def _sweep_while_it_lives(place: Place) -> Outcome:
    """A sweep whose only run is another process's."""
    sweep = place.folder / "sweep"
    out = sweep / "quadratic-cobo-s0"
    first = _start(place, out, "first", fault=(_slow, (SLOWER_ROUND_SECONDS,)))
    _wait_for_checkpoint(out, first)
    began = time.monotonic()
    settings = [one for one in place.run if not one.startswith(("log.", "run.device"))]
    command = [sys.executable, "-m", "cobo_dist.sweep", *settings, "--out", str(sweep)]
    with environment():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    wrong = _unharmed(place, out, first)
    line = next((one for one in (done.stdout + done.stderr).splitlines() if "in use" in one), "")
    wrong += [] if line and done.returncode else [f"code {done.returncode}: {done.stdout[-500:]}"]
    return Outcome(
        "a sweep whose run another process has", "this run fails, naming the owner; the first is unharmed",
        f"code {done.returncode}", seconds, not wrong, line.strip(), wrong,
    )  # fmt: skip


def _together(place: Place) -> Outcome:
    """As from two terminals: neither finds an owner at first."""
    out = place.folder / "together"
    runs = [_start(place, out, f"together {k}") for k in range(2)]
    ended = [run.end(120.0) for run in runs]
    codes = sorted(one[0].code or 0 for one in ended)
    loser = next((one for one in ended if one[0].code == 2), ended[0])
    wrong = [] if codes == [0, 2] else [f"codes {codes}"]
    wrong += differences(place.reference, out, ROUNDS) if is_done(out) else ["no run is done"]
    return judge(
        "two starts at the same time", "one runs, the other is refused with 2", loser,
        dict.fromkeys(range(RANKS), 2), ["process", "since"], 120.0, wrong,
    )  # fmt: skip


def _after_it_died(place: Place, where: str, fault: Fault | None, age: float) -> Outcome:
    out = place.folder / where.partition(":")[0].replace(" ", "_")
    first = _start(place, out, "first", fault=fault)
    _wait_for_checkpoint(out, first)
    for rank in range(RANKS):
        first.signal(rank, signal.SIGKILL)
    first.end(place.slack)
    _age(out, age)
    began = time.monotonic()
    ended = _start(place, out, "second", "run.resume=auto").end(120.0)
    seconds = time.monotonic() - began
    wrong = [f"rank {rank}: {one.code}: {one.err}" for rank, one in ended.items() if one.code]
    wrong += differences(place.reference, out, ROUNDS) if is_done(out) else ["it is not done"]
    return Outcome(
        f"all ranks killed {where}", "the second start takes the folder at once, with the same result",
        f"codes {[one.code for one in ended.values()]}, {len(wrong)} differences", seconds, not wrong,
        details=wrong,
    )  # fmt: skip


# -- owners that wake up late ----------------------------------------------------------------------------


def _zombie(place: Place, moment: str) -> Outcome:
    out = place.folder / moment.replace(" ", "_")
    first = _start(place, out, "first", fault=(_stop, ZOMBIES[moment]))
    pid = first.processes[0].pid
    wrong = []
    if not wait_for(lambda: (owner_record.start_ticks(pid) or "?")[0] == "T", first, 120.0):
        wrong.append("rank 0 was not stopped")
    _age(out, 61.0)
    second = _start(place, out, "second", "run.resume=auto").end(120.0)
    wrong += [f"the successor: {one.code}: {one.err}" for one in second.values() if one.code]
    # Rank 1 has done its part before rank 0 writes the status.
    codes = {0: 1, 1: 0 if moment == "at the finish" else 1}
    before = _contents(out)
    first.signal(0, signal.SIGCONT)
    first.restart_clock()
    ended = first.end(place.timeout + place.slack)
    after = _contents(out)
    wrong += [
        f"{name} changed"
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    ]
    wrong += differences(place.reference, out, ROUNDS) if is_done(out) else ["it is not done"]
    return judge(
        f"rank 0 stopped {moment}, awake after its successor has finished",
        "it ends with 1; no file changes", ended, codes,
        ["was taken over by process"], place.timeout + place.slack, wrong,
    )  # fmt: skip


CASES: dict[str, Callable[[Place], Outcome]] = {
    "resume": lambda place: _while_it_lives(place, "resume=auto"),
    "overwrite": lambda place: _while_it_lives(place, "overwrite=true"),
    "sweep": _sweep_while_it_lives,
    "together": _together,
    "dead": lambda place: _after_it_died(place, "on this host: its process is gone", None, 0.0),
    "stale": lambda place: _after_it_died(
        place, "on another host: no heartbeat for 61 s", (_elsewhere, ()), 61.0
    ),
    **{f"zombie {moment}": partial(_zombie, moment=moment) for moment in ZOMBIES},
}


# -- helpers -------------------------------------------------------------------------------------------


def _start(place: Place, out: Path, name: str, *more: str, fault: Fault | None = None) -> Run:
    logs = place.folder / "logs" / f"{out.name} {name}"
    return start(RANKS, [*place.run, f"run.dir={out}", *more], logs, fault=fault)


def _wait_for_checkpoint(out: Path, run: Run) -> None:
    wait_for(lambda: list(out.glob("checkpoints/round-?????????")), run, 120.0)


def _unharmed(place: Place, out: Path, first: Run) -> list[str]:
    """Wait for the first owner's end; return what is wrong with its result."""
    ended: dict[int, Ended] = first.end(120.0)
    wrong = [
        f"the first, rank {rank}: {one.code}: {one.err}" for rank, one in ended.items() if one.code
    ]
    return wrong + (
        differences(place.reference, out, ROUNDS) if is_done(out) else ["it is not done"]
    )


def _age(out: Path, seconds: float) -> None:
    """Make the last heartbeat older."""
    found = owner_record.latest(out)
    if found is not None:
        record = owner_record.record_path(out, found.epoch)
        os.utime(record, (time.time() - seconds,) * 2)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(one): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def _elsewhere() -> None:
    """Let this process be on another machine, so that only its heartbeat counts."""
    from cobo_dist.storage import owner

    owner_record.machine_id = owner.machine_id = lambda: "another boot"  # type: ignore[assignment]


def _slow(seconds: float) -> None:
    """Make every round longer."""
    from cobo_dist.tracking.metrics_buffer import MetricsBuffer

    _before(MetricsBuffer, "round", lambda: time.sleep(seconds))


def _stop(module: str, function: str, call: int) -> None:
    """Stop rank 0 before a call of a function, as if on another machine that was suspended."""
    _elsewhere()
    left = [call]

    def stop() -> None:
        left[0] -= 1
        if left[0] == 0 and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGSTOP)

    __import__(module)
    *classes, name = function.split(".")
    owner: object = sys.modules[module]
    for one in classes:
        owner = getattr(owner, one)
    _before(owner, name, stop)


def _before(owner: object, name: str, act: Callable[[], None]) -> None:
    """Let a function of a module or class do something first."""
    real = getattr(owner, name)

    def changed(*given: object, **more: object) -> object:
        act()
        return real(*given, **more)

    setattr(owner, name, changed)
