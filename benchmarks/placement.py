"""What it costs and saves to let collaborators move to one rank (`comm.placement=adaptive`).

    python benchmarks/placement.py [RANKS ...] [key=value ...]

80 clients in 10 clusters of 8, numbered in a random order: CoBo finds the clusters of a quadratic problem
(d = 4,000); Oracle knows those of the digits from the start (an MLP of d = 309,010). Each is trained with
clients where they are and with clients that move, on 2 and on 4 ranks, and the last 30 rounds are compared.
Settings are those of `cobo_dist.train`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measured_runs import train

CLUSTERS, EACH, LAST = 10, 8, 30
COMMON = ["run.eval_every=0", "run.checkpoint_every=0", "run.threads=1",
          "comm.placement_every=20", "run.engine=vectorised", "log.figures=false"]  # fmt: skip
RUNS = {
    "cobo, quadratic": [
        "run.rounds=160", "task.name=quadratic", "algorithm.sampling.rate=8", "algorithm.rho=0.01",
        "algorithm.gamma=0.01",
    ],
    "oracle, digits": [
        "run.rounds=60", "algorithm.name=oracle", f"task.clusters={CLUSTERS}", "task.test_size=100",
        f"task.clients_per_cluster={EACH}", "task.order=shuffled", "model.hidden=[4120]",
        "data.batch_size=4",
    ],
}  # fmt: skip


def main() -> None:
    """Train and print."""
    given = sys.argv[1:]
    settings = [one for one in given if "=" in one]
    ranks = [int(one) for one in given if "=" not in one] or [2, 4]
    print(f"{'':34}{'mixing, a round':>18}{'sent, a round':>16}{'a round':>10}  moves")
    with tempfile.TemporaryDirectory() as place:
        problem = write_problem(Path(place) / "problem.npz")
        for name, run in RUNS.items():
            more = [f"task.file={problem}"] if "quadratic" in name else []
            for count in ranks:
                for kind in ("static", "adaptive"):
                    folder = Path(place) / f"{name}-{count}-{kind}"
                    own = [*COMMON, *run, *more, *settings, f"comm.placement={kind}"]
                    report(f"{name}, {count} ranks, {kind}", train(own, count, folder))


def write_problem(path: Path, size: int = 4000) -> Path:
    """Write Example 2 with the clusters in a random order of clients."""
    rng = np.random.default_rng(0)
    label_n = rng.permutation(np.repeat(np.arange(CLUSTERS), EACH))
    centers = rng.normal(size=(CLUSTERS, size))[label_n]
    curvature = 1.0 + 0.2 * rng.uniform(-1.0, 1.0, size=len(label_n))
    np.savez(
        path, centers=centers, curvature=curvature, start=rng.normal(size=size), clusters=label_n
    )
    return path


def report(name: str, lines: list[dict[str, Any]]) -> None:
    """Print one line: medians of the last rounds, and what moved."""
    last = [line for line in lines if line["event"] == "round"][-LAST:]
    mixing, sent, seconds = (
        median(line[key] for line in last) for key in ("bytes_mixing", "bytes_sent", "seconds")
    )
    print(
        f"{name:34}{mixing / 1e6:>15.3f} MB{sent / 1e6:>13.3f} MB{1000 * seconds:>7.0f} ms", end=""
    )
    for move in (line for line in lines if line["event"] == "placement"):
        back = move["bytes"] / (move["mixing_before"] - move["mixing_after"])
        print(
            f"  round {move['round']}: {move['clients']} clients, {move['bytes'] / 1e6:.2f} MB, "
            f"{move['seconds']:.2f} s, {move['models_before']} -> {move['models_after']} models, "
            f"pays back in {back:.1f} rounds",
            end="",
        )
    print(flush=True)


if __name__ == "__main__":
    main()
