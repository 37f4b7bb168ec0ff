"""One slow client in virtual time: how long the policies of the clock take to a target accuracy.

    python benchmarks/stragglers.py [--data FILE.npz] [--seeds 0 1] [--slow 1 2 4 8 16] [--rounds 300]
        [--only METHOD ...] [--out DIR]

Client 0 takes 1, 2, 4, 8 or 16 virtual seconds for the work of a round, the others 1. The target of a method
is 95% of its own mean accuracy at the end of a run without a slow client. Prints a table of the virtual
seconds to the target, mean over seeds, for all clients and for those that are not slow (empty where a seed
does not get there), and of the accuracy of the slow client at the end. With `--out`, writes the table and a
figure there. A slow client changes no number of `sync`, only its seconds, so there is one such run for each
seed. The task is `digits`, 8 clients in 4 clusters; with `--data`, a file as data.file takes it, the clients
of `cross_silo` and a small ResNet-9. Digits take about 7 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markdown_table import markdown

import cobo_dist

SHARE = 0.95  # of the accuracy at the end of the synchronous run
SLOW_CLIENT = 0
Keys = dict[str, Any]
EVIDENCE: Keys = {"preset": "evidence"}
PAPER: Keys = {"algorithm.name": "cobo"}
FREE: Keys = {"clock.policy": "free"}
METHODS: dict[str, tuple[Keys, Keys]] = {
    "sync": (EVIDENCE, {}),
    "bounded, 4 rounds": (EVIDENCE, {"clock.policy": "bounded"}),
    "free": (EVIDENCE, FREE),
    "free, paper": (PAPER, FREE),
    "free, paper, discount": (PAPER, FREE | {"clock.discount": "sqrt"}),
    "AD-PSGD": ({"algorithm.name": "adpsgd"}, FREE),
    "SWIFT": ({"algorithm.name": "swift"}, FREE),
}
LOOKS = dict(zip(METHODS, ("ks-", "b^-", "ro-", "rv--", "r*:", "gD:", "mX:"), strict=True))
COMMON = {
    "clock.name": "virtual", "run.engine": "vectorised", "run.log_weights_every": 0,
    "run.checkpoint_every": 0, "run.overwrite": True, "log.figures": False, "log.progress": "none",
    "log.tensorboard": False, "run.threads": 1,
}  # fmt: skip
DIGITS = {"task.name": "digits", "run.eval_every": 5}
IMAGES = {
    "task.name": "cross_silo", "model.name": "resnet9", "model.width": 8, "data.eval_examples": 200,
    "run.eval_every": 10,
}  # fmt: skip


class Study:
    """The runs of one task, each done once."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self.options, self.place = options, place
        self.settings = DIGITS
        if options.data:
            self.settings = IMAGES | {"data.file": str(options.data)}
        self.curves: dict[tuple[str, float, int], pd.DataFrame] = {}

    def curve(self, name: str, slow: float, seed: int) -> pd.DataFrame:
        """Return the accuracy of each client [round, client], over virtual seconds."""
        keys, clock = METHODS[name]
        waits = not clock
        if waits or slow == 1:  # the numbers of a run without a slow client
            found = self.run(str(keys), keys, 1.0, seed)
            return found.set_axis(found.index * slow) if waits else found
        return self.run(name, keys | clock, slow, seed)

    def run(self, key: str, keys: Keys, slow: float, seed: int) -> pd.DataFrame:
        """Train, if that is not done yet; return the accuracy of each client over virtual seconds."""
        if (key, slow, seed) not in self.curves:
            given = COMMON | self.settings | keys
            given |= {
                "run.seed": seed,
                "run.rounds": self.options.rounds,
                "run.dir": str(self.place),
            }
            if slow != 1:
                given |= {"clock.slow_clients": [SLOW_CLIENT], "clock.slow_factor": slow}
            with redirect_stdout(io.StringIO()):
                cobo_dist.fit(None, given)
            self.curves[key, slow, seed] = accuracies(self.place)
        return self.curves[key, slow, seed]

    def target(self, name: str, seed: int, clients: slice) -> float:
        """Return the accuracy that a method must reach: a share of what it has without a slow client."""
        return SHARE * float(self.curve(name, 1.0, seed).iloc[-1, clients].mean())

    def seconds(self, name: str, slow: float, clients: slice) -> float:
        """Return the virtual seconds to the target, mean over seeds; NaN where a seed misses it."""
        found = []
        for seed in self.options.seeds:
            mean = self.curve(name, slow, seed).iloc[:, clients].mean(axis=1)
            reached = mean.index[mean >= self.target(name, seed, clients)]
            found.append(float(reached[0]) if len(reached) else np.nan)
        return float(np.mean(found))

    def row(self, name: str, slow: float) -> dict[str, object]:
        """Return a row of the table."""
        last = [self.curve(name, slow, seed).iloc[-1] for seed in self.options.seeds]
        return {
            "method": name,
            "slow-down": slow,
            "s, all clients": self.seconds(name, slow, slice(None)),
            "s, the others": self.seconds(name, slow, slice(SLOW_CLIENT + 1, None)),
            "accuracy at the end, %": 100 * float(np.mean([one.mean() for one in last])),
            "slow client, %": 100 * float(np.mean([one.iloc[SLOW_CLIENT] for one in last])),
        }


def accuracies(folder: Path) -> pd.DataFrame:
    """Return the accuracy of each client [round, client] of a run, over virtual seconds."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = {row["round"]: row["virtual_seconds"] for row in rows if row["event"] == "round"}
    table = pd.DataFrame(
        (seconds.get(row["round"], 0.0), row["client"], row["accuracy"])
        for row in rows
        if row["event"] == "eval" and row["client"] is not None
    )
    return table.pivot_table(index=0, columns=1, values=2, aggfunc="last")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the virtual seconds to the target against the slow-down, one panel each for all and the others."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column in zip(panels, ("s, all clients", "s, the others"), strict=True):
        for name, some in table.groupby("method", sort=False):
            axes.plot(some["slow-down"], some[column], LOOKS[str(name)], label=name, markersize=5)
        axes.set(xscale="log", yscale="log", title=column[3:], xlabel="slow-down of one client")
        axes.set_xticks(
            sorted(set(table["slow-down"])), [f"{s:g}" for s in sorted(set(table["slow-down"]))]
        )
        axes.minorticks_off()
        axes.grid(color="#dddddd")
    panels[0].set_ylabel(f"virtual seconds to {SHARE:.0%}")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncol=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="images; without, digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--slow", type=float, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument(
        "--only", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS)
    )
    parser.add_argument("--out", type=Path, help="folder for the table and the figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        study = Study(options, Path(place) / "run")
        rows: list[dict[str, object]] = []
        for name in options.only:
            for slow in options.slow:
                rows.append(study.row(name, slow))
                lines = markdown(pd.DataFrame(rows)).splitlines()
                print("\n".join(lines if len(rows) == 1 else lines[-1:]), flush=True)
    table = pd.DataFrame(rows)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "stragglers.csv", index=False)
        draw(table, options.out / "stragglers.png")


if __name__ == "__main__":
    main()
