"""What one client costs where there are many: seconds of a round and memory of a rank, against n.

    python benchmarks/scale.py [clients=100,1000,10000] [algorithms=fedavg,cobo] [ranks=2] [key=value ...]

Trains the digits' MLP, clients in clusters of 10 that draw 64 images each, for a few rounds at every n.
Prints the median seconds of a round, divided by n, without the first rounds, in which buffers and batches
are made; and the peak of the fullest rank beside what `cobo_dist.plan` counts for it and what a process takes
that has only loaded the program. Other settings are those of `cobo_dist.train`; clients are computed one by
one and checkpoints are written one client after the other, unless they say otherwise.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measured_runs import MIB, bare_bytes, counted, peaks, train

ROUNDS, FIRST = 16, 4


def settings_of(algorithm: str, clients: int) -> list[str]:
    """Return the settings of a run."""
    own = []
    if algorithm == "cobo":  # at W = 1 the penalty's step is the same whatever n
        own = [f"algorithm.rho={1.0 / clients:g}", "optimizer.lr=0.1"]
    return [
        "task.name=digits", f"task.clusters={max(1, clients // 10)}", "task.clients_per_cluster=10",
        "task.images_per_client=64", "task.test_size=50", f"algorithm.name={algorithm}", *own,
        f"run.rounds={ROUNDS}", "run.eval_every=0", "run.log_weights_every=0", "run.threads=1",
        "run.engine=one_by_one", "run.checkpoint_writing=foreground", "log.figures=false",
        "log.progress=none",
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    given = dict(one.split("=", 1) for one in sys.argv[1:])
    sizes = [int(n) for n in given.pop("clients", "100,1000,10000").split(",")]
    algorithms = given.pop("algorithms", "fedavg,cobo").split(",")
    ranks = int(given.pop("ranks", "2"))
    more = [f"{key}={value}" for key, value in given.items()]
    bare = bare_bytes()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, numpy {np.__version__}"
    )
    print(f"{ranks} ranks of 1 thread, {ROUNDS} rounds, median of the last {ROUNDS - FIRST}\n")
    for algorithm in algorithms:
        least = 0.0
        for clients in sizes:
            settings = [*settings_of(algorithm, clients), *more]
            with tempfile.TemporaryDirectory() as place:
                rows = train(settings, ranks, Path(place) / "run")
            peak = max(peaks(rows))
            seconds = median([row["seconds"] for row in rows if row["event"] == "round"][FIRST:])
            each = seconds / clients
            least = least or each
            parts = counted(settings, ranks)
            told = sum(parts.values())
            print(
                f"{algorithm:8}{clients:7,} clients  {seconds:9.4f} s a round  {1e6 * each:8.1f} us a client "
                f"({each / least:4.2f} x)  {peak / MIB:8.1f} MiB a rank, counted {told / MIB:.1f} + "
                f"{bare / MIB:.1f} = {(told + bare) / MIB:.1f} ({peak / (told + bare):4.2f} x)",
                flush=True,
            )
            for name, held in parts.items():
                print(f"    {name:<52}{held / MIB:10.1f} MiB")


if __name__ == "__main__":
    main()
