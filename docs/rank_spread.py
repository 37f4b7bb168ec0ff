"""Trains the quickstart on 1, 2 and 4 ranks with both engines: python docs/rank_spread.py

Writes docs/data/ranks.csv: how far results are apart where only the order of sums differs. Takes minutes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

import cobo_dist

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs/ranks"


def train(engine: str, ranks: int) -> cobo_dist.Run:
    """Train with one thread a rank; return the run. One that is done is read."""
    folder = RUNS / f"{engine}-{ranks}"
    settings = [
        f"run.engine={engine}",
        f"run.dir={folder}",
        "run.device=cpu",
        "run.threads=1",
        "run.resume=auto",
    ]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]
    command = [*launcher, "-m", "cobo_dist.train", *settings, "log.figures=false"]
    subprocess.run(command, cwd=ROOT, check=True)
    return cobo_dist.open_run(folder)


def spread() -> pd.DataFrame:
    """Return a row for each engine and number of ranks, compared with one rank that computes one by one."""
    rows = []
    first: cobo_dist.Run | None = None
    for engine in ("one_by_one", "vectorised"):
        for ranks in (1, 2, 4):
            run = train(engine, ranks)
            first = first or run
            assert run.summary is not None, "train ended with 0"
            halfway = np.abs(run.weights(400) - first.weights(400)).max()
            final = np.abs(run.W - first.W).max()
            accuracy, loss = (run.summary["final"][name] for name in ("accuracy", "loss"))
            rows.append(
                [
                    engine,
                    ranks,
                    f"{100 * accuracy:.2f}",
                    f"{loss:.6f}",
                    f"{halfway:.1g}",
                    f"{final:.1g}",
                ]
            )
    columns = [
        "engine",
        "ranks",
        "accuracy, %",
        "loss",
        "W at round 400, largest difference",
        "at the end",
    ]
    return pd.DataFrame(rows, columns=columns)


if __name__ == "__main__":
    spread().to_csv(ROOT / "docs/data/ranks.csv", index=False)
