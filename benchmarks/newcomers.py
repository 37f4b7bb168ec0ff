"""Clients that join and leave: what a newcomer's first model and weights are worth, and what they cost.

    python benchmarks/newcomers.py [--only TABLE ...] [--rounds 600] [--seeds 0 1] [--clients 1000]
        [--out DIR]

Three tables. `starts`: 24 clients share digits in 4 clusters of 6, of which 10 join one by one, for each
`membership.start`; how many rounds until a newcomer has 95% of the mean accuracy of its cluster's others, and
how far the mean of all others falls within 30 rounds. `bytes`: what a join sends, on 2 ranks. `scale`:
quadratic problems, of whose clients a tenth joins and a tenth leaves; seconds a round and memory, in the
second and in the last quarter. Runs that are in --out are not repeated. Takes about 10 minutes of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from markdown_table import markdown
from measured_runs import train

import cobo_dist

STARTS = ("common", "mean", "best_component", "nearest")
SHARE, DIP_ROUNDS, EVERY = 0.95, 30, 5
QUIET = (
    "run.log_weights_every=0", "run.checkpoint_every=0", "log.figures=false", "log.progress=none",
    "run.overwrite=true", "run.threads=1",
)  # fmt: skip
DIGITS = (
    *QUIET, "task.name=digits", "task.clients_per_cluster=6", "task.images_per_client=100",
    "model.hidden=[32]", "optimizer.lr=0.1", "algorithm.sampling.rate=3", "algorithm.gamma=0.2",
    "algorithm.rho=0.5", "algorithm.coupling=capped",
    f"run.eval_every={EVERY}", "run.engine=vectorised", "membership.joins=10",
)  # fmt: skip
METHODS = {
    **{f"CoBo, {one}": (f"membership.start={one}",) for one in STARTS},
    "CoBo, best_component, W of the component": (
        "membership.start=best_component", "membership.weights=component",
    ),
    "CoBo, best_component, 5 times the pairs": (
        "membership.start=best_component", "membership.sampling_factor=5", "membership.sampling_rounds=50",
    ),
    "IFCA": ("algorithm.name=ifca",),
    "Oracle": ("algorithm.name=oracle",),
}  # fmt: skip
TABLES = ("starts", "bytes", "scale")


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rounds", type=int, default=600, help="of the first and the last table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--clients", type=int, default=1000, help="of the last table")
    parser.add_argument("--out", type=Path, default=Path("runs/newcomers"), metavar="DIR")
    options = parser.parse_args()
    for table in options.only:
        if table == "starts":
            found = starts(options.rounds, options.seeds, options.out)
        elif table == "bytes":
            found = pd.DataFrame([bytes_of(one, options.out) for one in STARTS])
        else:
            found = scale(options.clients, options.rounds, options.out)
        print(markdown(found), end="\n\n", flush=True)


def fit(settings: list[str], folder: Path, callback: cobo_dist.Callback | None = None) -> Any:
    """Return a run, which is trained where it is not yet there."""
    if (folder / "summary.json").exists() and callback is None:
        return cobo_dist.open_run(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        return cobo_dist.fit(
            None, [*settings, f"run.dir={folder}"], callbacks=[callback] if callback else []
        )


# -- starts ------------------------------------------------------------------------------------------


def starts(rounds: int, seeds: list[int], out: Path) -> pd.DataFrame:
    """Return a row for each method: medians over all newcomers of all seeds."""
    rows = []
    for name, keys in METHODS.items():
        joins: list[Mapping[str, float]] = []
        finals = []
        for seed in seeds:
            first, last = f"membership.first={rounds // 3}", f"membership.last={2 * rounds // 3}"
            folder = out / f"{name} {rounds} s{seed}".replace(" ", "_").replace(",", "")
            # The keys of CoBo do not suit the other methods.
            own = [one for one in DIGITS if "CoBo" in name or not one.startswith("algorithm")]
            given = [*own, *keys, first, last, f"run.rounds={rounds}", f"run.seed={seed}"]
            run = fit(given, folder)
            joins += joins_of(run)
            finals.append(100 * run.summary["final"]["accuracy"])
        to_95 = [one["rounds"] for one in joins]
        rows.append(
            {
                "method": name,
                "accuracy on joining, %": statistics.median(one["first"] for one in joins),
                "rounds to 95%, median": statistics.median(to_95),
                "most": max(to_95),
                "dip of the others, points": statistics.mean(one["dip"] for one in joins),
                "accuracy at the end, %": statistics.mean(finals),
            }
        )
    return pd.DataFrame(rows)


def joins_of(run: Any) -> list[dict[str, float]]:
    """Return for each newcomer its first accuracy, its rounds to 95%, infinite for never, and the dip."""
    rows = run.metrics
    accuracy = 100 * rows[rows["client"].notna()].pivot_table(
        index="round", columns="client", values="accuracy"
    )
    clusters = np.load(run.path / "W.npz")["clusters"]
    found = []
    for line in events(run.path):
        if line["event"] != "joined":
            continue
        r, client = line["round"], line["client"]
        own = accuracy[client].dropna()
        alike = [c for c in accuracy if clusters[int(c)] == clusters[client] and c != client]
        mean = accuracy[alike].mean(axis=1)[own.index]
        reached = own.index[own >= SHARE * mean]
        others = accuracy.drop(columns=[client])
        before = others[others.index < r].iloc[-1].dropna()
        after = others[(others.index >= r) & (others.index < r + DIP_ROUNDS)][before.index]
        found.append(
            {
                "first": float(own.iloc[0]),
                "rounds": float(reached[0] - r + 1) if len(reached) else np.inf,
                "dip": float(before.mean() - after.mean(axis=1).min()),
            }
        )
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl."""
    import json

    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# -- bytes -------------------------------------------------------------------------------------------


def bytes_of(start: str, out: Path) -> dict[str, object]:
    """Return what a join sends beyond a round, in models, on 2 ranks with 12 clients each."""
    given = [
        *(one for one in DIGITS if "joins" not in one), "run.rounds=12", "membership.joins=1",
        "membership.first=8", "membership.last=8", f"membership.start={start}", "run.eval_every=0",
        "algorithm.sampling.rate=0",
    ]  # fmt: skip
    rows = train(given, 2, out / f"bytes_{start}")
    sent = {row["round"]: row["bytes_sent"] for row in rows if row["event"] == "round"}
    per_client = 4 * parameters(out / f"bytes_{start}")
    return {
        "start": start,
        "a round, models": sent[7] / per_client,
        "the round of a join, models": sent[8] / per_client,
        "more, MB": (sent[8] - sent[9]) / 1e6,
    }


def parameters(folder: Path) -> int:
    """Return the parameters of one model of a run."""
    model = cobo_dist.open_run(folder).model(0)
    return sum(one.numel() for one in model.parameters())


# -- scale -------------------------------------------------------------------------------------------


class Memory(cobo_dist.Callback):
    """Keeps the bytes of the process after each round that it sees."""

    def __init__(self) -> None:
        """Start without a round."""
        self.bytes: dict[int, int] = {}

    def after_round(self, r: int, metrics: Mapping[str, float]) -> None:
        """Read the resident bytes."""
        self.bytes[r] = psutil.Process().memory_info().rss


def scale(clients: int, rounds: int, out: Path) -> pd.DataFrame:
    """Return seconds a round and bytes in two quarters of a run with and without joins and leaves."""
    out.mkdir(parents=True, exist_ok=True)
    problem, rng = out / f"problem_{clients}.npz", np.random.default_rng(0)
    np.savez(
        problem,
        centers=np.repeat(rng.normal(size=(10, 20)), -(-clients // 10), axis=0)[:clients],
        curvature=1.0 + 0.2 * rng.uniform(-1.0, 1.0, size=clients),
        start=rng.normal(size=20),
    )
    rows = []
    for name, some in (("nobody", 0), ("a tenth each", clients // 10)):
        memory = Memory()
        given = [
            *QUIET, "task.name=quadratic", f"task.file={problem}", "optimizer.lr=0.05",
            "algorithm.rho=0.001", f"run.rounds={rounds}", "run.eval_every=0", "log.flush_every=20",
            f"membership.joins={some}", f"membership.leaves={some}", "membership.start=best_component",
        ]  # fmt: skip
        run = fit(given, out / f"scale_{some}", memory)
        seconds = run.rounds["seconds"].to_numpy()
        quarters = [slice(rounds // 4, rounds // 2), slice(rounds - rounds // 4, rounds)]
        held = [
            statistics.mean(b for r, b in memory.bytes.items() if at.start < r <= at.stop)
            for at in quarters
        ]
        rows.append(
            {
                "join and leave": name,
                "2nd quarter, ms": 1e3 * float(np.mean(seconds[quarters[0]])),
                "last quarter, ms": 1e3 * float(np.mean(seconds[quarters[1]])),
                "2nd quarter, MB": held[0] / 1e6,
                "last quarter, MB": held[1] / 1e6,
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
