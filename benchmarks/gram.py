"""All inner products of clients' models: seconds, bytes and memory of `exchange.gram` beside the arithmetic.

python benchmarks/gram.py [--clients 1000] [--size 1000000] [--ranks 2]

Starts its own ranks, of one thread each, over gloo. Prints, for the slowest or fullest rank, what was
measured and what arithmetic says: (R - 1)/R of a rank's rows and n^2 partial sums for each other rank are
sent. Beside the models a rank keeps n^2 partial sums and pieces of rows, never n x d numbers. The floor is
the same product of one rank's share of columns, without communication.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cobo_dist.comm.config import CommConfig
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.gram import plan_gram
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import open_session
from cobo_dist.comm.startup.launch_env import read_launch
from cobo_dist.maths.flat import empty_rows
from cobo_dist.planning.counting_exchange import CountingExchange

CPU = torch.device("cpu")


def main() -> None:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=1_000, help="number n of clients")
    parser.add_argument("--size", type=int, default=1_000_000, help="numbers d of a model")
    parser.add_argument("--ranks", type=int, default=2, help="number R of ranks")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        measure(given.clients, given.size)
        return
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={given.ranks}"]
    arguments = [f"--clients={given.clients}", f"--size={given.size}", "--rank"]
    subprocess.run([*command, "--standalone", __file__, *arguments], check=True)


def measure(clients: int, size: int) -> None:
    """Measure on this rank; rank 0 prints."""
    torch.set_num_threads(1)
    with open_session(read_launch(os.environ), CommConfig(), CPU) as session:
        placement = Placement.contiguous(clients, session.transport.world_size)
        exchange = Exchange(session.transport, placement, torch.float32, CPU)
        x_cd = empty_rows(len(exchange.ids), size, dtype=torch.float32)
        for client, x_d in zip(exchange.ids.tolist(), x_cd, strict=True):
            torch.arange(size, out=x_d).add_(997.0 * client).sin_()
        before = resident()
        session.transport.broadcast(b"")
        began = time.monotonic()
        found_cn = exchange.gram(x_cd)
        seconds = time.monotonic() - began
        kept = peak() - before
        check(found_cn, x_cd, exchange.ids)
        floor = seconds_of_product(clients, plan_gram(size, clients, placement.ranks, False))
        mine = np.array([seconds, floor, exchange.traffic.bytes["mixing"], kept], dtype=np.float64)
        gathered = session.transport.gather(mine.tobytes())
        if gathered:
            show(np.array([np.frombuffer(one) for one in gathered]).max(axis=0), placement, size)


def check(found_cn: np.ndarray, x_cd: torch.Tensor, ids: np.ndarray) -> None:
    """Compare products of this rank's first rows with those of float64 rows."""
    few_kd = x_cd[:3].double()
    exact = (few_kd @ few_kd.T).numpy()
    np.testing.assert_allclose(found_cn[: len(few_kd), ids[:3]], exact, rtol=1e-9)


def seconds_of_product(clients: int, plan: list[list[tuple[int, slice]]]) -> float:
    """Return the seconds of one rank's products: blocks on and above the diagonal, as `gram` takes them."""
    pieces = max(plan, key=len)
    width = pieces[0][1].stop - pieces[0][1].start
    piece_nw = torch.ones(clients, width, dtype=torch.float64)
    sums_nn = torch.zeros(clients, clients, dtype=torch.float64)
    began = time.monotonic()
    for _ in range(few := min(len(pieces), 10)):
        for at in range(0, clients, 256):
            sums_nn[at : at + 256, at:].addmm_(piece_nw[at : at + 256], piece_nw[at:].T)
    columns = sum(one.stop - one.start for _, one in pieces)
    return (time.monotonic() - began) / few * columns / width


def show(worst: np.ndarray, placement: Placement, size: int) -> None:
    """Print what was measured beside the arithmetic."""
    seconds, floor, sent, kept = worst.tolist()
    n, ranks = placement.clients, placement.ranks
    counting = CountingExchange(placement, {1: size}, torch.float32)
    counting.gram(torch.zeros(n, 1))
    planned = counting.traffic().bytes_ps.sum(axis=0).max()
    buffers = sum(counting.buffers.values()).max()
    rows = -(-n // ranks) * size * 4
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; "
        f"n = {n:,} clients, d = {size:,}, {ranks} ranks of one thread, float32 models\n"
    )
    print(f"{'':34}{'measured':>12}{'arithmetic':>12}")
    print(f"{'seconds; of the products alone':34}{seconds:>12.2f}{floor:>12.2f}")
    print(f"{'MB that a rank sends; planned':34}{sent / 1e6:>12.1f}{planned / 1e6:>12.1f}")
    print(f"{'MB beside the models; planned':34}{kept / 1e6:>12.1f}{buffers / 1e6:>12.1f}")
    print(f"\na rank's models: {rows / 1e6:,.0f} MB; all models: {n * size * 4 / 1e6:,.0f} MB")


def resident() -> int:
    """Return the bytes of memory that this process has now, and forget its highest value so far."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes that this process had since `resident`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
