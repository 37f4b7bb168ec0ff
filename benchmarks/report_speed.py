"""How long a report over many runs takes, and how much memory.

    python benchmarks/report_speed.py [--runs 100] [--clients 80] [--rounds 100] [--style NAME] [--out DIR]

Trains one run of each of ten methods on digits, and copies it for other seeds, with other numbers. Then
`cobo_dist.report` runs on all of them in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from grid_runs import train_once

METHODS = (
    "local", "fedavg", "ditto", "ifca", "cobo", "oracle", "fedamp", "pfedgraph", "dada", "apfl",
)  # fmt: skip
EVERY = 5
"""Rounds between evaluations, and between snapshots of W."""


def main() -> None:
    """Make the runs, report on them and print what it took."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--clients", type=int, default=80, help="a multiple of 4")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--style", default="screen", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/report_speed"), metavar="DIR")
    options = parser.parse_args()
    folders = make_runs(options.out, options.runs, options.clients, options.rounds)
    command = [sys.executable, "-m", "cobo_dist.report", *map(str, folders)]
    command += ["--style", options.style, "--out", str(options.out / "report")]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6
    print(
        f"{len(folders)} runs of {options.clients} clients: {seconds:.1f} s, {cpu:.1f} s of CPU, "
        f"{peak:.2f} GB at most"
    )


def make_runs(out: Path, count: int, clients: int, rounds: int) -> list[Path]:
    """Return the folders of `count` runs, which are made unless they are there."""
    settings = [
        "task.clusters=4", f"task.clients_per_cluster={clients // 4}", "run.threads=1",
        f"run.eval_every={EVERY}", f"run.log_weights_every={EVERY}", "run.checkpoint_every=0",
        "log.figures=false", "log.progress=none",
    ]  # fmt: skip
    folders = []
    for seed in range(-(-count // len(METHODS))):
        for method in METHODS[: count - len(folders)]:
            given = [*settings, f"algorithm.name={method}"]
            stem = out / f"{clients}_{method}"
            first = train_once(None, given, rounds, stem, 0.1, 0)
            folder = first.with_name(first.name.removesuffix("s0") + f"s{seed}")
            if not folder.exists():
                _copy(first, folder, seed)
            folders.append(folder)
    return folders


def _copy(run: Path, to: Path, seed: int) -> None:
    """Copy a run's files as one of another seed, whose metrics are a little lower or higher."""
    draft = to.with_suffix(".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for name in ("W.npz", "env.json"):
        shutil.copy(run / name, draft / name)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["run"] |= {"seed": seed, "dir": str(to)}
    (draft / "config.yaml").write_text(yaml.safe_dump(config))
    generator = np.random.default_rng(seed)
    with (run / "metrics.jsonl").open() as lines, (draft / "metrics.jsonl").open("w") as copy:
        for line in lines:
            row = json.loads(line)
            copy.write(json.dumps(_moved([row], generator)[0]) + "\n")
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"seed": seed, "per_client": _moved(summary["per_client"], generator)}
    summary |= {"final": _moved([summary["final"]], generator)[0]}
    (draft / "summary.json").write_text(json.dumps(summary))
    draft.rename(to)


def _moved(rows: Sequence[dict[str, Any]], generator: np.random.Generator) -> list[dict[str, Any]]:
    """Return rows with other accuracies and losses."""
    moved = []
    for row in rows:
        factors = dict(zip(("accuracy", "loss"), generator.uniform(0.97, 1.03, 2), strict=True))
        changed = {
            key: row[key] * float(by) for key, by in factors.items() if row.get(key) is not None
        }
        if "accuracy" in changed:
            changed["accuracy"] = min(1.0, changed["accuracy"])
        moved.append(row | changed)
    return moved


if __name__ == "__main__":
    main()
