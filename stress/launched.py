"""A real torchrun that restarts its workers: after a kill, and when nodes join and leave."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from .kills import CLIENTS, EVERY, ROUNDS, SIZE
from .outcome import Outcome, shorten
from .problem import RANK_KEYS, arguments, differences, write_problem
from .ranks import environment, finished, free_port

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
RUN_SECONDS = 900.0  # at most, for one run
ELASTIC = {
    # Without it, the agents of torch 2.14 wait for an address that is never posted when a node joins.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",  # seconds to save a checkpoint, on a busy machine
}


def restarts(count: int, folder: Path, ranks: int = 2, seed: int = 0) -> list[Outcome]:
    """Kill workers of a real torchrun that restarts them: the run must resume by itself."""
    began = time.monotonic()
    rng = random.Random(seed)
    run = arguments(write_problem(folder / "problem.npz", CLIENTS, SIZE), 10 * ROUNDS, EVERY)
    whole, cut = folder / "whole", folder / "cut"
    finished(ranks, [*run, f"run.dir={whole}"], folder / "logs")
    command = [
        *TORCHRUN, "--standalone", f"--nproc_per_node={ranks}", f"--max-restarts={count}",
        "-m", "cobo_dist.train", *run, f"run.dir={cut}",
    ]  # fmt: skip
    killed = 0
    output = folder / "torchrun.txt"
    with environment(), output.open("wb") as file:
        launcher = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        for wanted in range(1, count + 1):
            # Some rounds later than the last attempt reached, so that each attempt makes progress.
            if not _waits(launcher, _has_come(cut, wanted * 10 * ROUNDS // (count + 1))):
                break
            if workers := list(_children(launcher.pid)):
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed += 1
        code = launcher.wait(RUN_SECONDS)
    finally:
        launcher.kill()
    text = output.read_text(errors="replace")
    wrong = differences(whole, cut, 10 * ROUNDS) if code == 0 else [shorten(text, 2000)]
    told = [line for line in text.splitlines() if line.startswith("goes on after round")]
    if len(told) != killed or not killed:
        wrong.append(f"{killed} kills, and {len(told)} times it went on")
    return [
        Outcome(
            f"{killed} x SIGKILL to a worker under torchrun --max-restarts={count}",
            "torchrun's code 0; the run goes on by itself to what it is without",
            f"code {code}, went on {len(told)} times, {len(wrong)} differences",
            time.monotonic() - began,
            not wrong,
            told[-1] if told else "",
            wrong,
        )
    ]


def elastic(folder: Path, rounds: int = 400) -> list[Outcome]:
    """A second node joins a run of `torchrun --nnodes=1:2`, and then all its processes are killed."""
    began = time.monotonic()
    every = rounds // 20
    run = [
        one
        for one in arguments(write_problem(folder / "problem.npz", CLIENTS, SIZE), rounds, every)
        if not one.startswith(("run.eval_every", "run.log_weights_every"))
    ]
    run += [f"run.eval_every={every}", f"run.log_weights_every={every}", "comm.timeout=60"]
    whole, cut = folder / "whole", folder / "cut"
    finished(1, [*run, f"run.dir={whole}"], folder / "logs", RUN_SECONDS)
    node = [
        *TORCHRUN, "--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=3", "--rdzv-id=stress",
        "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--rdzv-conf=last_call_timeout=3,keep_alive_interval=2",
        "-m", "cobo_dist.train", *run, f"run.dir={cut}",
    ]  # fmt: skip
    nodes, came = [_start(node, folder / "first.txt")], []
    code: int | None = None
    try:
        came.append(_waits(nodes[0], _has_come(cut, every)))
        # Stop the worker, so that the run cannot end before the second node joins.
        (worker,) = _children(nodes[0].pid)
        os.kill(worker, signal.SIGSTOP)
        nodes.append(_start(node, folder / "second.txt"))
        came.append(_waits(nodes[0], lambda: _is_asked_to_stop(worker)))
        os.kill(worker, signal.SIGCONT)
        came.append(_waits(nodes[0], lambda: _ranks(cut) == 2))
        came.append(_waits(nodes[0], _has_come(cut, _newest(cut) + every)))
        _lose(nodes[1])
        code = nodes[0].wait(RUN_SECONDS)
    finally:
        for one in nodes:
            _lose(one)
    # Which node has rank 0 is torchrun's choice.
    both = [(folder / name).read_text(errors="replace") for name in ("second.txt", "first.txt")]
    text = "\n".join(both)
    told = [line for line in text.splitlines() if line.startswith("goes on after round")]
    wrong = [shorten(text, 3000)]
    if code == 0:
        wrong = differences(whole, cut, rounds, RANK_KEYS, ("traffic", "warning"))
    if len(told) != 2 or not all(came):
        wrong.append(f"it went on {len(told)} times: {told}; it came this far: {came}")
    return [
        Outcome(
            "torchrun --nnodes=1:2: a second node joins, and is lost with all its processes",
            "code 0; the run goes on by itself on 2 ranks, then on 1, to what it is without",
            f"code {code}, went on {len(told)} times, {len(wrong)} differences",
            time.monotonic() - began,
            not wrong,
            told[-1] if told else "",
            wrong,
        )
    ]


def _start(command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    """Start one node's launcher."""
    with environment(), output.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | ELASTIC
        )


def _lose(node: subprocess.Popen[bytes]) -> None:
    """Kill a launcher and its workers at once, as if the machine were lost."""
    workers = list(_children(node.pid)) if node.poll() is None else []
    for process in (node.pid, *workers) if node.poll() is None else ():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    node.wait()


def _is_asked_to_stop(process: int) -> bool:
    """Return whether SIGTERM is pending for a stopped process."""
    waiting = 0
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(("SigPnd:", "ShdPnd:")):
            waiting |= int(line.split()[1], 16)
    return bool(waiting >> (signal.SIGTERM - 1) & 1)


def _ranks(run: Path) -> int:
    """Return the number of ranks of a run's last start; 0 if it is unknown."""
    try:
        return len(json.loads((run / "env.json").read_text())["ranks"])
    except (OSError, ValueError):
        return 0


def _newest(run: Path) -> int:
    """Return the round of the newest checkpoint; 0 if there is none."""
    names = [path.name for path in (run / "checkpoints").glob("round-*") if not path.suffix]
    return max((int(name.partition("-")[2]) for name in names), default=0)


def _has_come(run: Path, r: int) -> Callable[[], bool]:
    """Return a function that tells whether a checkpoint of round r or later exists."""
    return lambda: _newest(run) >= r


def _waits(launcher: subprocess.Popen[bytes], true: Callable[[], bool]) -> bool:
    """Poll a condition every 2 ms; return False if the launcher ended first."""
    until = time.monotonic() + RUN_SECONDS
    while launcher.poll() is None and time.monotonic() < until:
        if true():
            return True
        time.sleep(0.002)
    return False


def _children(process: int) -> Iterator[int]:
    """Yield the ids of a process's children."""
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # a thread that ends while this reads
            yield from map(int, (task / "children").read_text().split())
