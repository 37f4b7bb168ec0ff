"""Ways in which a run ends badly: each with its exit codes, the one line that says why, and its time."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cobo_dist.comm.startup.start_guard import REPEATED_SIGNAL_SECONDS

from .outcome import Outcome, shorten
from .problem import arguments, differences, write_problem
from .ranks import Ended, Fault, Run, finished, free_port, start, wait_for

RANKS, CLIENTS, SIZE = 3, 9, 200
ROUNDS, EVERY = 120, 10
FAULT_ROUND = 57


@dataclass
class Place:
    """The folder of the endings, and the run without a fault that they are compared with."""

    folder: Path
    timeout: float  # comm.timeout, seconds
    slack: float  # seconds beyond the time-out that a busy machine may take
    run: list[str] = field(default_factory=list)
    reference: Path = Path()

    def prepare(self) -> None:
        """Run without any fault."""
        problem = write_problem(self.folder / "problem.npz", CLIENTS, SIZE)
        self.reference = self.folder / "whole"
        self.run = [
            *arguments(problem, ROUNDS, EVERY),
            f"comm.timeout={self.timeout:g}",
        ]
        finished(RANKS, [*self.run, f"run.dir={self.reference}"], self.folder / "logs")

    def start(self, out: Path, fault: Fault | None = None, alone: bool = True) -> Run:
        """Start the run in `out` and return when it has its first checkpoint."""
        run = start(
            RANKS, [*self.run, f"run.dir={out}"], self.folder / "logs", fault=fault, alone=alone
        )
        wait_for(lambda: list(out.glob("checkpoints/round-?????????")), run, 600.0)
        run.restart_clock()
        return run

    def goes_on(self, out: Path) -> list[str]:
        """Resume the run; return its differences from the run without a fault."""
        try:
            again = [*self.run, f"run.dir={out}", "run.resume=auto"]
            finished(RANKS, again, self.folder / "logs")
        except RuntimeError as error:
            return [f"it cannot be resumed: {error}"]
        return differences(self.reference, out, ROUNDS)


def judge(
    action: str,
    expected: str,
    ended: Mapping[int, Ended],
    codes: Mapping[int, int],
    words: Sequence[str],
    limit: float,
    wrong: Sequence[str] = (),
) -> Outcome:
    """Return the row: it passes with these codes in time, no stack trace, and one line with the words."""
    wrong = list(wrong)
    lines: list[str] = []
    for rank, one in ended.items():
        if one.code != codes[rank]:
            wrong.append(f"rank {rank}: code {one.code} and not {codes[rank]}: {shorten(one.err)}")
        if one.seconds > limit:
            wrong.append(f"rank {rank}: {one.seconds:.1f} s and not {limit:.1f}")
        if "Traceback" in one.err + one.out or "frame #" in one.err:
            wrong.append(f"rank {rank}: a stack trace: {shorten(one.err, 2000)}")
        if len(one.said) > 1:
            wrong.append(f"rank {rank}: {len(one.said)} lines: {one.said}")
        lines += one.said or [line for line in one.out.splitlines() if line.startswith("stopped")]
    line = next((line for line in lines if all(word in line for word in words)), "")
    if not line:
        wrong.append(f"no line with {', '.join(words)}, but {lines}")
    seen = ", ".join(f"{rank}: {one.code} in {one.seconds:.1f} s" for rank, one in ended.items())
    return Outcome(
        action,
        expected,
        f"rank {seen}",
        max(one.seconds for one in ended.values()),
        not wrong,
        line or (lines[0] if lines else ""),
        wrong,
    )


# -- while it runs -------------------------------------------------------------------------------------


def killed(place: Place) -> Outcome:
    """SIGKILL to one rank."""
    out = place.folder / "killed"
    run = place.start(out)
    run.signal(1, signal.SIGKILL)
    ended = run.end(place.timeout + place.slack)
    return judge(
        "SIGKILL to rank 1", "the others end with 1, naming it; resumes", ended, {0: 1, 1: -9, 2: 1},
        ["rank 0 lost contact", "in round", "nothing was heard of rank 1 on"],
        place.timeout + place.slack, place.goes_on(out),
    )  # fmt: skip


def killed_0(place: Place) -> Outcome:
    """SIGKILL to rank 0, which prints for all."""
    out = place.folder / "killed_0"
    run = place.start(out)
    run.signal(0, signal.SIGKILL)
    ended = run.end(place.timeout + place.slack)
    return judge(
        "SIGKILL to rank 0", "the others end with 1, and one of them names it; resumes",
        ended, {0: -9, 1: 1, 2: 1}, ["error: rank ", "in round", "nothing was heard of rank 0 on"],
        place.timeout + place.slack, place.goes_on(out),
    )  # fmt: skip


def out_of_memory(place: Place) -> Outcome:
    """One rank asks for more memory than there is."""
    out = place.folder / "memory"
    run = place.start(out, (inject_out_of_memory, (FAULT_ROUND, 1)))
    ended = run.end(place.timeout + place.slack)
    return judge(
        f"rank 1 asks for 4 PB in round {FAULT_ROUND}", "all end with 1: rank, host, round; resumes",
        ended, dict.fromkeys(range(RANKS), 1),
        ["error: rank 1 on", f"failed in round {FAULT_ROUND}", "out of memory"],
        place.timeout + place.slack, place.goes_on(out),
    )  # fmt: skip


def frozen(place: Place) -> Outcome:
    """SIGSTOP: a rank is alive but sends nothing."""
    return _frozen(place, 1)


def frozen_0(place: Place) -> Outcome:
    """The same of rank 0, which then speaks after the others, and of itself."""
    return _frozen(place, 0)


def _frozen(place: Place, rank: int) -> Outcome:
    out = place.folder / f"frozen-{rank}"
    run = place.start(out)
    run.signal(rank, signal.SIGSTOP)
    run.wait(place.timeout + place.slack, [other for other in range(RANKS) if other != rank])
    run.signal(rank, signal.SIGCONT)
    ended = run.end(place.timeout + 2 * place.slack)
    wrong = []
    if rank == 0 and not any(
        "; rank 0 on" in one and "stopped for" in one for one in ended[0].said
    ):
        wrong.append(f"rank 0 does not say that it was stopped: {ended[0].said}")
    return judge(
        f"SIGSTOP of rank {rank}, comm.timeout={place.timeout:g}",
        "the others end with 1 after the time-out, and it, once awake, too; resumes",
        ended, {0: 1, 1: 1, 2: 1}, [f"nothing was heard of rank {rank} on"],
        place.timeout + 2 * place.slack, [*wrong, *place.goes_on(out)],
    )  # fmt: skip


def not_a_number(place: Place) -> Outcome:
    """NaN in one client's data at one round."""
    out = place.folder / "nan"
    run = place.start(out, (inject_nan, (FAULT_ROUND, 4)))
    ended = run.end(place.timeout + place.slack)
    return judge(
        f"a NaN in client 4's loss in round {FAULT_ROUND}",
        "all end with 1, client and round named; resumes from before",
        ended, dict.fromkeys(range(RANKS), 1), ["client 4", f"round {FAULT_ROUND}"],
        place.timeout + place.slack, place.goes_on(out),
    )  # fmt: skip


def asked_to_stop(place: Place) -> Outcome:
    """SIGTERM to one rank."""
    out = place.folder / "asked"
    run = place.start(out)
    run.signal(2, signal.SIGTERM)
    ended = run.end(place.slack)
    return judge(
        "SIGTERM to rank 2", "all save and end with 75; resumes", ended,
        dict.fromkeys(range(RANKS), 75), ["stopped by SIGTERM", "run.resume=auto"], place.slack,
        place.goes_on(out),
    )  # fmt: skip


def asked_twice(place: Place) -> Outcome:
    """A second SIGTERM before the run could stop for the first."""
    out = place.folder / "twice"
    run = place.start(out, (inject_pause, (EVERY, REPEATED_SIGNAL_SECONDS[signal.SIGTERM] + 7.0)))
    run.signal(1, signal.SIGTERM)
    time.sleep(REPEATED_SIGNAL_SECONDS[signal.SIGTERM] + 0.5)  # sooner, it counts as the first
    run.signal(1, signal.SIGTERM)
    run.restart_clock()
    ended = run.end(place.timeout + place.slack)
    late = [] if ended[1].seconds < 3.0 else [f"rank 1 took {ended[1].seconds:.1f} s"]
    return judge(
        "a second SIGTERM to rank 1, in a long round", "it ends at once with 143, the others with 1; "
        "resumes", ended, {0: 1, 1: 143, 2: 1}, ["lost contact"],
        place.timeout + place.slack, late + place.goes_on(out),
    )  # fmt: skip


def interrupted(place: Place) -> Outcome:
    """Ctrl-C, which every process of a terminal receives, and once more from the launcher."""
    out = place.folder / "interrupted"
    run = place.start(out)
    for rank in (*range(RANKS), *range(RANKS)):
        run.signal(rank, signal.SIGINT)
    ended = run.end(place.slack)
    return judge(
        "SIGINT (Ctrl-C) to all ranks", "all save and end with 75; resumes", ended,
        dict.fromkeys(range(RANKS), 75), ["stopped by SIGINT", "run.resume=auto"], place.slack,
        place.goes_on(out),
    )  # fmt: skip


# -- disks ---------------------------------------------------------------------------------------------


def full_disk(place: Place) -> Outcome:
    """A disk that fills up after the first checkpoint."""
    with mounted(place.folder / "full", "size=4m") as why:
        if why:
            return skipped("a disk that fills up", why)
        out, balloon = place.folder / "full" / "run", place.folder / "full" / "balloon"
        run = place.start(out)
        fill(balloon)
        ended = run.end(place.timeout + place.slack)
        balloon.unlink()
        return judge(
            "a disk that fills up after the first checkpoint",
            "all end with 1: file, bytes needed and free; resumes when there is room",
            ended, dict.fromkeys(range(RANKS), 1), ["needs", "are free", "run.resume=auto"],
            place.timeout + place.slack, place.goes_on(out),
        )  # fmt: skip


def full_at_the_end(place: Place) -> Outcome:
    """A disk that is full when the models are written."""
    with mounted(place.folder / "models", "size=4m") as why:
        if why:
            return skipped("no room for the models", why)
        out, balloon = place.folder / "models" / "run", place.folder / "models" / "balloon"
        run = place.start(out, (inject_full_disk, (str(balloon),)))
        ended = run.end(120.0)
        balloon.unlink(missing_ok=True)
        return judge(
            "a disk that is full when the models are written", "all end with 1: file, bytes needed and "
            "free; resumes when there is room", ended, dict.fromkeys(range(RANKS), 1),
            ["models", "needs", "are free", "run.resume=auto"], 120.0, place.goes_on(out),
        )  # fmt: skip


def read_only(place: Place) -> Outcome:
    """A file system that is mounted read-only, since root ignores permissions."""
    with mounted(place.folder / "fixed", "ro") as why:
        if why:
            return skipped("a read-only folder", why)
        out = place.folder / "fixed" / "run"
        run = start(RANKS, [*place.run, f"run.dir={out}"], place.folder / "logs")
        ended = run.end(place.timeout + place.slack)
        return judge(
            "run.dir in a read-only file system", "refused with 2 by all", ended,
            dict.fromkeys(range(RANKS), 2), ["run.dir=", "name another run.dir"],
            place.timeout + place.slack,
        )  # fmt: skip


# -- at the start --------------------------------------------------------------------------------------


def port_in_use(place: Place) -> Outcome:
    """Another process listens on the port of rank 0."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = int(other.getsockname()[1])
        return _at_the_start(place, f"port {port} in use", [str(port)], [0, 1, 2], {}, port)


def wrong_world_size(place: Place) -> Outcome:
    """Ranks with different WORLD_SIZE."""
    sizes = {0: 2, 1: 3}
    return _at_the_start(
        place, "rank 0 with WORLD_SIZE=2, rank 1 with WORLD_SIZE=3", [], [0, 1], sizes, None
    )


def missing_rank(place: Place) -> Outcome:
    """One rank was never started."""
    sizes = {0: 3, 2: 3}
    return _at_the_start(place, "rank 1 of 3 never started", [], [0, 2], sizes, None)


def _at_the_start(
    place: Place,
    action: str,
    words: list[str],
    which: list[int],
    sizes: dict[int, int],
    port: int | None,
) -> Outcome:
    out = place.folder / "never"
    run = start(
        which, [*place.run, f"run.dir={out}"], place.folder / "logs", sizes=sizes,
        port=port or free_port(),
    )  # fmt: skip
    ended = run.end(place.timeout + place.slack)
    left = [f"{out} was made"] if out.exists() else []
    shutil.rmtree(out, ignore_errors=True)
    return judge(
        f"{action}, comm.timeout={place.timeout:g}", "refused with 2 by all, within the time-out",
        ended, dict.fromkeys(which, 2), ["error: ", *words], place.timeout + place.slack, left,
    )  # fmt: skip


ENDINGS: dict[str, Callable[[Place], Outcome]] = {
    "killed": killed,
    "killed-0": killed_0,
    "memory": out_of_memory,
    "frozen": frozen,
    "frozen-0": frozen_0,
    "nan": not_a_number,
    "asked": asked_to_stop,
    "twice": asked_twice,
    "interrupted": interrupted,
    "full": full_disk,
    "full-at-the-end": full_at_the_end,
    "read-only": read_only,
    "port": port_in_use,
    "world-size": wrong_world_size,
    "missing": missing_rank,
}


def endings(
    folder: Path, which: Sequence[str] = (), timeout: float = 8.0, slack: float = 20.0
) -> list[Outcome]:
    """Try the endings of these names, or all; a busy machine may take `slack` seconds longer."""
    place = Place(folder, timeout, slack)
    place.prepare()
    return [ENDINGS[name](place) for name in which or ENDINGS]


# -- helpers ---------------------------------------------------------------------------------------------


def skipped(action: str, why: str) -> Outcome:
    """Return the row of a test that this machine cannot run."""
    return Outcome(action, "", why, 0.0, None)


@contextmanager
def mounted(folder: Path, how: str) -> Iterator[str]:
    """Mount a small file system in memory; yield why it cannot be mounted, or an empty string."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", how, "none", str(folder)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        why = answer.stderr.strip() if answer.returncode else ""
    except OSError as error:
        why = str(error)
    try:
        yield f"needs a file system of its own: {why}" if why else ""
    finally:
        if not why:
            subprocess.run(["umount", str(folder)], check=False)


def fill(balloon: Path) -> None:
    """Write until the file system is full."""
    try:
        # Unbuffered: closing the file must not write again what did not fit. Appending: all ranks may
        # fill the same file.
        with balloon.open("ab", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
    except OSError:
        return


def inject_nan(r: int, client: int) -> None:
    """Make a client's center NaN in round r."""
    from cobo_dist.tasks.quadratic import QuadraticBatches

    good = QuadraticBatches.batch

    def batch(self, t, stream, *more):  # type: ignore[no-untyped-def]
        if t != r - 1 or client not in self.clients:
            return good(self, t, stream, *more)
        kept, self.centers_cd = self.centers_cd, self.centers_cd.clone()
        self.centers_cd[self.clients.index(client)] = float("nan")
        try:
            return good(self, t, stream, *more)
        finally:
            self.centers_cd = kept

    QuadraticBatches.batch = batch  # type: ignore[method-assign]


def inject_out_of_memory(r: int, rank: int) -> None:
    """Make a rank allocate more memory than any machine has in round r."""
    import torch

    from cobo_dist.algorithms.cobo import CoBo

    good = CoBo.round

    def hungry(self, t):  # type: ignore[no-untyped-def]
        if t == r - 1 and os.environ["RANK"] == str(rank):
            torch.empty(10**15)
        return good(self, t)

    CoBo.round = hungry  # type: ignore[method-assign]


def inject_pause(after: int, seconds: float) -> None:
    """Make every round after `after` rounds take so long."""
    from cobo_dist.tracking.metrics_buffer import MetricsBuffer

    good = MetricsBuffer.round

    def slow(self, r, outcome, took):  # type: ignore[no-untyped-def]
        good(self, r, outcome, took)
        if r > after:
            time.sleep(seconds)

    MetricsBuffer.round = slow  # type: ignore[method-assign]


def inject_full_disk(balloon: str) -> None:
    """Fill the disk when the models are to be written."""
    from cobo_dist.training import finish

    good = finish._save_models

    def save(*given):  # type: ignore[no-untyped-def]
        fill(Path(balloon))
        good(*given)

    finish._save_models = save
