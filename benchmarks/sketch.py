"""Sketched alignment: accuracy, links and bytes against the numbers of a sketch.

    python benchmarks/sketch.py [--only RULE ...] [--sizes 1 4 16 64 256 1024 4096] [--seeds 0 1 2]
        [--config FILE] [--rounds N] [--set KEY=VALUE ...] [--out DIR] [--figures DIR]

CoBo by the config, the quickstart if none is given, with each of the rules `paper` and `robust`: gradients
that travel themselves, then sketches of each size (`algorithm.sketch`). Prints for each, as means over the
seeds with half of their 95% confidence intervals: test accuracy, F1 of the links, the mean weight within
and across the true clusters, and the MB that a client sends and receives in all, which are mostly models.
Draws DIR/sketch.png. Runs that are in --out are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from grid_runs import COMMON, train_once
from markdown_table import markdown
from study_tables import Result, interval

import cobo_dist
from cobo_dist.config.loading import load_config
from cobo_dist.maths.confidence import half_width
from cobo_dist.reports.figures.style import canvas, log_axis, save
from cobo_dist.tasks.registry import build_task

RULES = {"paper": ("preset=paper",), "robust": ("preset=robust",)}
LOOKS = {
    "paper": ("CoBo, paper's update", "#d55e00", "o"),
    "robust": ("CoBo, preset robust", "#0072b2", "s"),
}
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def main() -> None:
    """Train, print and draw."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=RULES, metavar="RULE", default=list(RULES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024, 4096])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default=str(QUICKSTART), metavar="FILE")
    parser.add_argument("--rounds", type=int, default=0, help="0: as the config says")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings")
    parser.add_argument("--out", type=Path, default=Path("runs/sketch"), metavar="DIR")
    parser.add_argument("--figures", type=Path, default=Path("report"), metavar="DIR")
    options = parser.parse_args()
    shared = [*COMMON, *options.set]
    config = load_config(options.config, shared)
    rounds = options.rounds or config.run.rounds
    found: dict[str, dict[int, list[Result]]] = {}
    rows = []
    for rule in options.only:
        for size in (0, *options.sizes):
            given = [*shared, *RULES[rule], f"algorithm.sketch={size}"]
            stem, lr = options.out / f"{rule}_{size}", config.optimizer.lr
            paths = [
                train_once(options.config, given, rounds, stem, lr, seed) for seed in options.seeds
            ]
            runs = [
                Result.read(path, rule, lr, seed)
                for path, seed in zip(paths, options.seeds, strict=True)
            ]
            found.setdefault(rule, {})[size] = runs
            rows.append(row(rule, size, runs, paths))
    table = pd.DataFrame(rows)
    print(markdown(table), flush=True)
    options.figures.mkdir(parents=True, exist_ok=True)
    draw(found, table, options.figures / "sketch.png")


def row(rule: str, size: int, runs: list[Result], paths: list[Path]) -> dict[str, str]:
    """Return a row of the table."""
    means = np.array([within_and_across(path) for path in paths])
    return {
        "": LOOKS[rule][0],
        "sketch": f"{size:,}" if size else "none",
        "accuracy %": interval([one.accuracies[-1] for one in runs]),
        "F1 of links": interval([one.links_f1 or 0.0 for one in runs], ".2f"),
        "W within": f"{means[:, 0].mean():.2f}",
        "W across": f"{means[:, 1].mean():.2f}",
        "MB a client": interval([one.megabytes for one in runs], ".3g"),
    }


def within_and_across(path: Path) -> tuple[float, float]:
    """Return the mean weight of the last W within the true clusters and across them."""
    run = cobo_dist.open_run(path)
    config = run.config
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    clusters_n = np.asarray(task.clusters)
    same_nn = clusters_n[:, None] == clusters_n
    others_nn = ~np.eye(len(clusters_n), dtype=bool)
    return float(run.W[same_nn & others_nn].mean()), float(run.W[~same_nn].mean())


def draw(found: dict[str, dict[int, list[Result]]], table: pd.DataFrame, path: Path) -> None:
    """Draw accuracy by the size of a sketch, and that with gradients themselves as dotted lines."""
    with canvas(4.6, 2.8) as figure:
        axes = figure.subplots()
        for place, (rule, by_size) in enumerate(found.items()):
            title, color, marker = LOOKS[rule]
            sizes = np.array(sorted(size for size in by_size if size))
            ends = [[one.accuracies[-1] for one in by_size[size]] for size in sizes.tolist()]
            bars = [
                half_width(np.std(one, ddof=1), len(one)) if len(one) > 1 else 0.0 for one in ends
            ]
            axes.errorbar(
                sizes * 1.12**place, [np.mean(one) for one in ends], bars,
                color=color, marker=marker, markersize=4, elinewidth=1, capsize=2, label=title,
            )  # fmt: skip
            whole = float(np.mean([one.accuracies[-1] for one in by_size[0]]))
            axes.axhline(whole, color=color, linestyle=":", linewidth=1)
        axes.set(xlabel="numbers of a sketch", ylabel="test accuracy (%)", xscale="log")
        axes.set_ylim(top=min(100.0, axes.get_ylim()[1]))
        log_axis(axes.xaxis)
        axes.legend(loc="lower right")
        save(figure, path, table)


if __name__ == "__main__":
    main()
