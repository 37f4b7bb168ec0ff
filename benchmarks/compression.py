"""Compressed models: accuracy, links and MB a client.

    python benchmarks/compression.py [--only RULE ...] [--seeds 0 1 2] [--config FILE] [--rounds N]
        [--out DIR] [--figures DIR]

CoBo by the config, the quickstart if none is given, with each of the rules `paper` and `robust`: models that
travel whole, a byte for each number, or the greatest 10%, 1% and 0.1% of the numbers (`comm.compression`).
Prints for each, as means over the seeds with half of their 95% confidence intervals, what
`benchmarks/sketch.py` prints. Draws DIR/compression.png: accuracy against the MB that a client sends and
receives. Runs that are in --out are not repeated. Takes about 3 minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from grid_runs import COMMON, train_once
from markdown_table import markdown
from sketch import LOOKS, QUICKSTART, RULES, row
from study_tables import Result

from cobo_dist.config.loading import load_config
from cobo_dist.reports.figures.style import canvas, log_axis, save

MODELS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "int8": ("comm.compression=int8",),
    "10%": ("comm.compression=topk", "comm.compression_share=0.1"),
    "1%": ("comm.compression=topk", "comm.compression_share=0.01"),
    "0.1%": ("comm.compression=topk", "comm.compression_share=0.001"),
}


def main() -> None:
    """Train, print and draw."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=RULES, metavar="RULE", default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default=str(QUICKSTART), metavar="FILE")
    parser.add_argument("--rounds", type=int, default=0, help="0: as the config says")
    parser.add_argument("--out", type=Path, default=Path("runs/compression"), metavar="DIR")
    parser.add_argument("--figures", type=Path, default=Path("report"), metavar="DIR")
    options = parser.parse_args()
    config = load_config(options.config, list(COMMON))
    rounds, lr = options.rounds or config.run.rounds, config.optimizer.lr
    rows: list[dict[str, str]] = []
    points: list[dict[str, object]] = []
    for rule in options.only:
        for name, keys in MODELS.items():
            given = [*COMMON, *RULES[rule], *keys]
            stem = options.out / f"{rule}_{name.strip('%')}_0"
            paths = [
                train_once(options.config, given, rounds, stem, lr, seed) for seed in options.seeds
            ]
            runs = [
                Result.read(path, rule, lr, seed)
                for path, seed in zip(paths, options.seeds, strict=True)
            ]
            found = row(rule, 0, runs, paths)
            found.pop("sketch")
            rows.append({"": found.pop(""), "models": name, **found})
            points.append(
                {
                    "rule": rule,
                    "models": name,
                    "accuracy": float(np.mean([one.accuracies[-1] for one in runs])),
                    "megabytes": float(np.mean([one.megabytes for one in runs])),
                }
            )
    print(markdown(pd.DataFrame(rows)), flush=True)
    options.figures.mkdir(parents=True, exist_ok=True)
    draw(pd.DataFrame(points), options.figures / "compression.png")


def draw(points: pd.DataFrame, path: Path) -> None:
    """Draw accuracy against MB a client, a point for each way in which models travel."""
    with canvas(4.6, 2.8) as figure:
        axes = figure.subplots()
        for rule, some in points.groupby("rule", sort=False):
            title, color, marker = LOOKS[str(rule)]
            axes.plot(
                some["megabytes"], some["accuracy"], color=color, marker=marker, markersize=4,
                linewidth=0.8, linestyle=":", label=title,
            )  # fmt: skip
            side, height = ("left", -8) if rule == "paper" else ("right", 3)
            for _, one in some.iterrows():
                axes.annotate(
                    one["models"], (one["megabytes"], one["accuracy"]),
                    xytext=(4 if side == "left" else -5, height), textcoords="offset points",
                    fontsize=6, ha=side, color=color,
                )  # fmt: skip
        axes.set(xlabel="MB a client", ylabel="test accuracy (%)", xscale="log")
        axes.margins(y=0.12)
        log_axis(axes.xaxis)
        axes.legend(loc="best")
        save(figure, path, points)


if __name__ == "__main__":
    main()
