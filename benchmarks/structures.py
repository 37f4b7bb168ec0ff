"""Structures beyond equal clusters: what each method reaches, and W beside the graph that would be right.

    python benchmarks/structures.py [--only STRUCTURE ...] [--rounds 500] [--seeds 0 1 2] [--out DIR]
        [--figures DIR]

Eight clients share scikit-learn's digits, with 112 training and 90 test images each. Local, FedAvg, CoBo
with the paper's update, CoBo with `preset=robust` and, where clusters are known and not trivial, Oracle
train an MLP with batches of 32 and learning rate 0.1; CoBo's rho and gamma are the defaults. Prints
accuracies in %, means over seeds with half of the 95% confidence interval, and draws
DIR/structures_weights.png. Runs that are in --out are not repeated. All of it takes about 8 minutes of one
core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from markdown_table import markdown
from matplotlib.axes import Axes
from numpy.typing import NDArray

import cobo_dist
from cobo_dist.maths.confidence import half_width
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.reports.figures.style import GREY, canvas, save
from cobo_dist.tasks.registry import build_task

STRUCTURES = {
    "IID": ("task.partition.name=iid",),
    "unequal": ("task.change.name=labels", "task.change.cluster_sizes=[4,3,1]"),
    "outlier": ("task.change.name=labels", "task.change.cluster_sizes=[7,1]"),
    "hierarchy": ("task.change.name=hierarchy",),
    "ring": ("task.partition.name=ring",),
    "continuum": ("task.change.name=rotation", "task.change.by=clients", "task.change.degrees=180"),
    "all different": ("task.change.name=labels", "task.change.clusters=8"),
}
METHODS = {
    "Local": ("algorithm.name=local",),
    "FedAvg": ("algorithm.name=fedavg",),
    "CoBo, paper": ("algorithm.name=cobo",),
    "CoBo, robust": ("algorithm.name=cobo", "preset=robust"),
    "Oracle": ("algorithm.name=oracle",),
}
WITH_ORACLE = ("unequal", "outlier", "hierarchy")  # of IID it is FedAvg, of all different Local
LEARNED = ("CoBo, paper", "CoBo, robust")
SETTINGS = (
    "task.name=classification", "task.validation_fraction=0.1", "task.test_fraction=0.4",
    "model.hidden=[64,64]", "optimizer.lr=0.1", "data.batch_size=32", "run.engine=vectorised",
    "run.threads=1", "run.eval_every=0", "run.log_weights_every=0", "run.checkpoint_every=0",
    "log.figures=false", "log.progress=none",
)  # fmt: skip
Result = Mapping[str, Any]


def main() -> None:
    """Train, print and draw."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=STRUCTURES, default=list(STRUCTURES))
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/structures"), metavar="DIR")
    parser.add_argument("--figures", type=Path, default=Path("report"), metavar="DIR")
    options = parser.parse_args()
    results = [
        result(structure, method, seed, options.rounds, options.out)
        for seed in options.seeds
        for structure in options.only
        for method in METHODS
        if method != "Oracle" or structure in WITH_ORACLE
    ]
    frame = pd.DataFrame(results)
    print(markdown(accuracies(frame)), end="\n\n")
    print(markdown(weights(frame)), flush=True)
    options.figures.mkdir(parents=True, exist_ok=True)
    draw(frame, options.figures / "structures_weights.png")


def result(structure: str, method: str, seed: int, rounds: int, out: Path) -> Result:
    """Return accuracy, W and the right graph of one run, which is trained where it is not yet there."""
    folder = out / f"{structure} {method} {rounds} s{seed}".replace(" ", "_").replace(",", "")
    given = [*SETTINGS, *STRUCTURES[structure], *METHODS[method]]
    if (folder / "summary.json").exists():
        run = cobo_dist.open_run(folder)
    else:
        fixed = [
            f"run.rounds={rounds}",
            f"run.seed={seed}",
            f"run.dir={folder}",
            "run.overwrite=true",
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            run = cobo_dist.fit(None, [*given, *fixed])
    summary, config = run.summary or {}, run.config
    task = build_task(config.task, config.model, config.data, seed, torch.float32)
    graph = task.true_graph or TrueGraph.of(task.clusters or ())
    return {
        "structure": structure,
        "method": method,
        "seed": seed,
        "accuracy": 100 * summary["final"]["accuracy"],
        "W": run.W,
        "right": graph.rows(range(task.clients)),
    }


def _interval(values: Sequence[float], sign: str = "") -> str:
    """Return the mean with half of its 95% confidence interval; 0 for one value."""
    half = half_width(np.std(values, ddof=1), len(values)) if len(values) > 1 else 0.0
    return f"{np.mean(values):{sign}.1f} ± {half:.1f}"


def accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies by structure and method, and what CoBo gains, seed by seed, over Local and FedAvg."""
    rows = []
    for structure, part in frame.groupby("structure", sort=False):
        by_seed = part.pivot(index="seed", columns="method", values="accuracy")
        row = {"structure": structure}
        row |= {one: _interval(by_seed[one]) if one in by_seed else "" for one in METHODS}
        for one in LEARNED:
            for other in ("Local", "FedAvg"):
                row[f"{one} - {other}"] = _interval(by_seed[one] - by_seed[other], "+")
        rows.append(row)
    return pd.DataFrame(rows)


def off_diagonal(w_nn: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the weights between two clients."""
    return w_nn[~np.eye(len(w_nn), dtype=bool)]


def weights(frame: pd.DataFrame) -> pd.DataFrame:
    """Return, of the right graph and of each CoBo, the mean weight, and W's correlation with the graph."""
    rows = []
    for structure, part in frame.groupby("structure", sort=False):
        row: dict[str, Any] = {
            "structure": structure, "right": float(np.mean([off_diagonal(w) for w in part["right"]])),
        }  # fmt: skip
        for one in LEARNED:
            own = part[part["method"] == one]
            row[f"{one}: mean W"] = float(np.mean([off_diagonal(w) for w in own["W"]]))
            row[f"{one}: distance"] = float(
                np.mean(
                    [
                        np.abs(off_diagonal(w - r))
                        for w, r in zip(own["W"], own["right"], strict=True)
                    ]
                )
            )
            known = [
                value for value in map(correlation, own["W"], own["right"]) if value is not None
            ]
            row[f"{one}: correlation"] = float(np.mean(known)) if known else None
        rows.append(row)
    return pd.DataFrame(rows)


def correlation(w_nn: NDArray[np.floating], right_nn: NDArray[np.floating]) -> float | None:
    """Return the correlation of W's weights with the right ones; None where one of them is constant."""
    pair = off_diagonal(w_nn), off_diagonal(right_nn)
    if min(np.std(one) for one in pair) < 1e-6:
        return None
    return float(np.corrcoef(*pair)[0, 1])


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw the right graph and both learned W, means over seeds: a column for each structure."""
    names = list(dict.fromkeys(frame["structure"]))
    lines = {"right weights": ("Local", "right"), **{one: (one, "W") for one in LEARNED}}
    with canvas(1.1 * len(names) + 1.2, 3.9, square=True) as figure:
        grid = figure.subplots(len(lines), len(names), squeeze=False)
        for row, (label, (method, column)) in zip(grid, lines.items(), strict=True):
            for axes, name in zip(row, names, strict=True):
                own = frame[(frame["structure"] == name) & (frame["method"] == method)]
                image = _matrix(axes, np.mean(np.stack(list(own[column])), axis=0))
            row[0].set_ylabel(label)
        for axes, name in zip(grid[0], names, strict=True):
            axes.set_title(name)
        bar = figure.colorbar(
            image, ax=grid.ravel().tolist(), shrink=0.6, label="weight, mean over seeds"
        )
        bar.set_ticks([0.0, 0.5, 1.0], labels=["0", "0.5", "1"])
        _, table = save(figure, path, pd.DataFrame())
        table.unlink()  # the runs have the numbers


def _matrix(axes: Axes, w_nn: NDArray[np.floating]) -> Any:
    shown = np.ma.masked_array(w_nn, np.eye(len(w_nn), dtype=bool))
    axes.set_facecolor(GREY)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(shown, cmap="Blues", vmin=0, vmax=1)


if __name__ == "__main__":
    main()
