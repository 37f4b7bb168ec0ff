"""gloo against MPI between two ranks of one machine.

    mpirun -n 2 python benchmarks/transports.py [RUNS]
    mpirun -n 2 python benchmarks/transports.py large

Prints the median seconds of a simultaneous exchange in both directions, for a model of the paper
(ResNet-9), a small model and a single number, with bytes per second in each direction and the target ratio.
Runs of the two transports alternate, and all received data are checked. The last row is the time that
remains to wait for a model when the ranks computed for 50 ms after posting it: gloo has threads that move
data meanwhile, MPI usually does not. `large` sends one message longer than 2^31 bytes (and needs 7 GB of
memory).
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time

import torch
from torch import Tensor

from cobo_dist.comm.config import CommConfig
from cobo_dist.comm.session import open_session
from cobo_dist.comm.startup.launch_env import read_launch
from cobo_dist.comm.transports.base import Transport
from cobo_dist.comm.transports.mpi_world import exit_barrier

CPU = torch.device("cpu")
BUSY_SECONDS = 0.05
CASES = {
    "26 MB": (6_573_120, 0.0, "2"),
    "0.26 MB": (65_731, 0.0, "-"),
    "4 bytes": (1, 0.0, "20"),
    "26 MB, 50 ms after": (6_573_120, BUSY_SECONDS, "-"),
}
"""By name: int32 numbers each way, seconds of computation between posting and waiting, target ratio."""


def main() -> None:
    """Measure and print."""
    launch = read_launch(os.environ)
    if launch.world_size != 2:
        sys.exit("start it with mpirun -n 2")
    torch.set_num_threads(1)
    with (
        open_session(launch, CommConfig(backend="gloo"), CPU) as gloo,
        open_session(launch, CommConfig(backend="mpi"), CPU) as mpi,
    ):
        if sys.argv[1:] == ["large"]:
            send_large(mpi.transport)
            return
        runs = int(sys.argv[1]) if sys.argv[1:] else 40
        lines = [
            f"one exchange both ways between 2 ranks, median of {runs} alternating runs",
            f"{mpi.backend}; torch {torch.__version__}, Python {platform.python_version()}; "
            f"{torch.get_num_threads()} thread a rank, {os.cpu_count()} cores",
            f"\n{'':22}{'gloo':>12}{'MPI':>12}{'gloo / MPI':>12}{'target':>8}"
            f"{'gloo MB/s':>11}{'MPI MB/s':>11}",
        ]
        for name, (count, busy, wanted) in CASES.items():
            by_gloo, by_mpi = compare(gloo.transport, mpi.transport, count, busy, runs)
            line = f"{name:22}{1e3 * by_gloo:9.3f} ms{1e3 * by_mpi:9.3f} ms"
            line += f"{by_gloo / by_mpi:12.1f}{wanted:>8}"
            if count > 1 and not busy:  # with computation, this is not the whole transfer time
                line += "".join(f"{4e-6 * count / took:11.1f}" for took in (by_gloo, by_mpi))
            lines.append(line)
        if launch.rank == 0:
            print("\n".join([*lines, "\nall received data were what was sent"]))


def compare(
    gloo: Transport, mpi: Transport, count: int, busy: float, runs: int
) -> tuple[float, float]:
    """Return this rank's median seconds of an exchange of `count` int32 by gloo and by MPI."""
    rank, peer = gloo.rank, 1 - gloo.rank
    mine, theirs = numbers(rank, count), numbers(peer, count)
    send, box = torch.empty_like(mine), torch.empty_like(mine)
    seconds: dict[Transport, list[float]] = {gloo: [], mpi: []}
    for run in range(-2, runs):  # the first two connect and are not timed
        for transport in (gloo, mpi):
            torch.add(mine, run, out=send)
            box.zero_()
            mpi.exchange({peer: torch.ones(1)}, {peer: torch.empty(1)}, "pairs").wait()  # set off
            started = time.perf_counter()
            pending = transport.exchange({peer: send}, {peer: box}, "pairs")
            posted = time.perf_counter()
            while time.perf_counter() < posted + busy:
                pass
            free = time.perf_counter()
            pending.wait()
            took = time.perf_counter() - free + (posted - started)
            if not torch.equal(box, theirs + run):
                raise AssertionError(f"run {run}: rank {peer} sent something else")
            if run >= 0:
                seconds[transport].append(took)
    return statistics.median(seconds[gloo]), statistics.median(seconds[mpi])


def numbers(rank: int, count: int) -> Tensor:
    """Return a rank's own numbers, int32 [count]."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(2**30, (count,), dtype=torch.int32, generator=generator)


def send_large(mpi: Transport) -> None:
    """Send rank 1 a message of 2^31 + 4096 bytes and check it, number by number."""
    numbers = torch.arange(2**28 + 512, dtype=torch.int64)
    box = torch.zeros_like(numbers) if mpi.rank == 1 else numbers
    started = time.perf_counter()
    if mpi.rank == 0:
        mpi.exchange({1: numbers}, {}, "pairs").wait()
        return
    mpi.exchange({}, {0: box}, "pairs").wait()
    seconds = time.perf_counter() - started
    assert torch.equal(box, numbers)
    print(f"{8 * len(box):,} bytes arrived whole in {seconds:.1f} s")


if __name__ == "__main__":
    main()
    exit_barrier(0)
