"""Accuracy and bytes of CoBo with models sent as bfloat16.

python benchmarks/wire.py [--seeds 0 1] [--rounds 300] [key=value ...]

Trains CoBo on the digits (8 clients in 4 clusters) on 2 ranks, with `comm.dtype=model` and `=bfloat16`.
Prints accuracy and loss of the last models, the link accuracy (the share of client pairs whose link agrees
with the true clusters), bytes sent, and the largest and the mean difference of an entry of the last W.
Settings are those of `cobo_dist.train`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RANKS = 2


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="for cobo_dist.train")
    given = parser.parse_intermixed_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; CoBo on digits, "
        f"{given.rounds} rounds, {RANKS} ranks\n"
    )
    print(f"{'seed':>4} {'sent as':11}{'accuracy':>9}{'loss':>8}{'link accuracy':>15}", end="")
    print(f"{'MB sent':>9}{'W differs, max':>16}{'mean':>9}")
    with tempfile.TemporaryDirectory() as place:
        for seed in given.seeds:
            whole = None
            for dtype in ("model", "bfloat16"):
                settings = [
                    f"run.rounds={given.rounds}", f"run.seed={seed}", f"comm.dtype={dtype}",
                    *given.settings,
                ]  # fmt: skip
                summary, weights = train(Path(place) / f"{dtype}-{seed}", settings)
                apart = np.abs(weights - whole) if whole is not None else None
                whole = weights if whole is None else whole
                show(seed, dtype, summary, apart)


def train(folder: Path, settings: list[str]) -> tuple[dict[str, Any], NDArray[np.floating]]:
    """Return the summary of a run, and its last W."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}",
        "-m", "cobo_dist.train", "run.eval_every=0", "run.log_weights_every=0", "log.figures=false",
        "log.progress=none", f"run.dir={folder}", *settings,
    ]  # fmt: skip
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    weights = np.load(folder / "W.npz")["weights"]
    return json.loads((folder / "summary.json").read_text()), weights[-1]


def show(
    seed: int, dtype: str, summary: dict[str, Any], apart: NDArray[np.floating] | None
) -> None:
    """Print a row."""
    final = summary["final"]
    line = f"{seed:>4} {dtype:11}{final['accuracy']:>9.4f}{final['loss']:>8.4f}"
    line += f"{summary['cluster_match']:>15.1%}{summary['bytes_sent'] / 1e6:>9.1f}"
    if apart is not None:
        line += f"{apart.max():>16.1e}{apart.mean():>9.1e}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
