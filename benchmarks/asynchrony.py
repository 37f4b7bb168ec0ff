"""A rank that stops again and again, in real time: what it costs the others, synchronous and asynchronous.

    python benchmarks/asynchrony.py [--ranks 4] [--rounds 4000] [--stop 5] [--every 10] [--seeds 0 1]
        [--lags 100 1000000]

CoBo on `digits`, 16 clients in 4 clusters, each on a rank of its own or spread over several. The last rank is
undisturbed, or is stopped (SIGSTOP) for --stop of every --every seconds. Prints for each mode the rounds a
second, and what share that is of the undisturbed run of the same mode; which share of the clients took a
round, on average; how old the models were that ranks mixed with; and the mean test accuracy at the end of the
last rank's clients and of the others. In an asynchronous run `comm.max_lag` decides whether a rank that falls
behind leaves out rounds. All of it takes about 8 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from markdown_table import markdown

CLIENTS = 16
DIGITS = (
    "task.name=digits", "task.clusters=4", "task.clients_per_cluster=4",
    "algorithm.selection=evidence", "algorithm.coupling=capped", "algorithm.start=zeros",
    "run.threads=1", "run.device=cpu", "run.engine=vectorised",
    "run.checkpoint_every=0", "log.figures=false", "log.progress=none", "run.overwrite=true",
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4000)
    parser.add_argument("--stop", type=float, default=5.0, help="seconds")
    parser.add_argument("--every", type=float, default=10.0, help="seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--lags", type=int, nargs="+", default=[100, 1_000_000], help="comm.max_lag"
    )
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {options.ranks} ranks\n")
    modes = {"synchronous": ["comm.mode=synchronous"]}
    for lag in options.lags:
        modes[f"asynchronous, max_lag {lag:,}"] = ["comm.mode=asynchronous", f"comm.max_lag={lag}"]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for mode, keys in modes.items():
            undisturbed = 0.0
            for stop in (0.0, options.stop):
                found = [
                    run(
                        [*keys, f"run.seed={seed}"],
                        stop,
                        options,
                        Path(place) / f"{len(rows)} {seed}",
                    )
                    for seed in options.seeds
                ]
                means = pd.DataFrame(found).mean()
                undisturbed = undisturbed or means["rounds a second"]
                share = means["rounds a second"] / undisturbed
                stopped = f"{stop:g} of {options.every:g} s" if stop else "never"
                rows.append({"mode": mode, "stopped": stopped, **means, "of undisturbed": share})
                print(rows[-1], file=sys.stderr, flush=True)
    print(markdown(pd.DataFrame(rows)))


def run(
    keys: list[str], stop: float, options: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Train once; return a row of the table."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc_per_node={options.ranks}", "-m", "cobo_dist.train", *DIGITS, *keys,
        f"run.rounds={options.rounds}", f"run.dir={folder}",
    ]  # fmt: skip
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    ended = threading.Event()
    if stop:
        given = (launcher.pid, options.ranks - 1, folder, stop, options.every, ended)
        threading.Thread(target=disturb, args=given, daemon=True).start()
    code = launcher.wait()
    ended.set()
    if code:
        raise SystemExit(f"the run ended with code {code}")
    return figures(folder, options.ranks)


def disturb(
    launcher: int, rank: int, folder: Path, stop: float, every: float, ended: threading.Event
) -> None:
    """Stop one rank for `stop` of every `every` seconds, once it trains."""
    while not ended.is_set() and not (folder / "W.npz").exists():
        time.sleep(0.05)
    with contextlib.suppress(psutil.NoSuchProcess):
        (process,) = [
            one
            for one in psutil.Process(launcher).children(recursive=True)
            if one.environ().get("RANK") == str(rank)
        ]
        while not ended.wait(every - stop):
            process.send_signal(signal.SIGSTOP)
            ended.wait(stop)
            process.send_signal(signal.SIGCONT)


def figures(folder: Path, ranks: int) -> dict[str, float]:
    """Return what a finished run shows."""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    summary = json.loads((folder / "summary.json").read_text())
    rounds = [row for row in rows if row["event"] == "round"]
    own = CLIENTS // ranks  # the last rank's clients are the last ones
    accuracy = np.array([100 * one["accuracy"] for one in summary["per_client"]])
    return {
        "rounds a second": summary["rounds"] / summary["seconds"],
        "clients a round, %": float(np.mean([row.get("clients", CLIENTS) for row in rounds]))
        * 100 / CLIENTS,
        "age, rounds": float(np.mean([row.get("staleness_mean", 0.0) for row in rounds])),
        "accuracy there, %": float(accuracy[-own:].mean()),
        "of the others, %": float(accuracy[:-own].mean()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
