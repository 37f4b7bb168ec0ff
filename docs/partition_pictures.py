"""Draws the pictures of docs/DATA.md: partitions and structures: python docs/partition_pictures.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cobo_dist.cli.prepare import main
from cobo_dist.config import load_config
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.reports.figures.style import GREY, canvas, save
from cobo_dist.tasks.registry import build_task

FIGURES = Path(__file__).with_name("figures")
SETTINGS = {
    "iid": ["clients=10"],
    "quantity": ["clients=10"],
    "dirichlet": ["clients=10", "alpha=0.3"],
    "pathological": ["clients=10", "classes_per_client=3"],
    "shards": ["clients=10"],
    "ring": ["clients=10", "classes_per_client=4"],
    "disjoint_classes": ["cluster_sizes=[2, 2, 3, 3]"],
    "pfllib_pathological": ["clients=10", "classes_per_client=2"],
    "pfllib_dirichlet": ["clients=10", "alpha=0.3"],
}
"""The settings of each partition, of scikit-learn's digits."""


STRUCTURES = {
    "IID": "task.partition.name=iid",
    "unequal clusters": "task.change.name=labels task.change.cluster_sizes=[4,3,1]",
    "one outlier": "task.change.name=labels task.change.cluster_sizes=[7,1]",
    "all different": "task.change.name=labels task.change.clusters=8",
    "hierarchy": "task.change.name=hierarchy",
    "ring": "task.partition.name=ring",
    "continuum": "task.change.name=rotation task.change.by=clients task.change.degrees=180",
    "circle": "task.change.name=rotation task.change.by=clients",
}
"""The settings of each structure, over eight clients."""


def right_weights(settings: str) -> np.ndarray:
    """Return the right weights of all clients. [n, n]"""
    config = load_config(None, ["task.name=classification", *settings.split()])
    task = build_task(config.task, config.model, config.data, 0, torch.float32)
    assert task.clusters is not None or task.true_graph is not None
    graph = task.true_graph or TrueGraph.of(task.clusters or ())
    return graph.rows(range(task.clients))


def draw_structures(path: Path) -> None:
    """Draw the right weights of all structures, side by side."""
    with canvas(7.0, 3.7, square=True) as figure:
        grid = figure.subplots(2, 4)
        for axes, (name, settings) in zip(grid.flat, STRUCTURES.items(), strict=True):
            weights = right_weights(settings)
            shown = np.ma.masked_array(weights, np.eye(len(weights), dtype=bool))
            image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1)
            axes.set_facecolor(GREY)
            axes.grid(visible=False)
            axes.set_title(name)
            axes.set_xticks(range(0, 8, 2))
            axes.set_yticks(range(0, 8, 2))
        for axes in grid[1]:
            axes.set_xlabel("client")
        bar = figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.6, label="right weight")
        bar.set_ticks([0.0, 0.5, 1.0], labels=["0", "0.5", "1"])
        _, table = save(figure, path, pd.DataFrame())
        table.unlink()


def arguments(name: str, folder: Path) -> list[str]:
    """Return the arguments of `prepare` for the picture of a partition."""
    given = [f"task.partition.{one}" for one in (f"name={name}", *SETTINGS[name])]
    return ["task.name=classification", *given, "--picture", str(folder / f"partition_{name}.png")]


if __name__ == "__main__":
    for name in SETTINGS:
        main(arguments(name, FIGURES))
        (FIGURES / f"partition_{name}.csv").unlink()
    draw_structures(FIGURES / "structures.png")
