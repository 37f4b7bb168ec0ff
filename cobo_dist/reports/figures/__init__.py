"""Groups -> PNG figures with the drawn numbers as CSV beside them. Only this room loads matplotlib.

style     colours, sizes, the canvas
curves    accuracy, perplexity, loss, decay
matrices  heat maps of the weights
links     the graph of links
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cobo_dist.reports.figures.curves import draw_decay, draw_metric
from cobo_dist.reports.figures.links import draw_graph, moving
from cobo_dist.reports.figures.matrices import draw_all_weights, draw_weights
from cobo_dist.reports.grouping import Group, task_metric
from cobo_dist.reports.writing import slug


def draw_task(groups: Sequence[Group], out: Path) -> list[Path]:
    """Draw all figures of one task into the folder `out`. Returns the files written, in order."""
    metric = task_metric(groups)
    files = [] if metric == "loss" else draw_metric(groups, metric, out / f"{metric}.png")
    files += draw_metric(groups, "loss", out / "loss.png")
    files += draw_decay(groups, out / "decay.png")
    changing = moving(groups)
    for group in changing:
        name = "graph" if len(changing) == 1 else f"graph_{slug(group.label)}"
        files += draw_graph(group, out / f"{name}.png")
    single = sum(len(group.runs) for group in groups) == 1
    entries = []
    for group in groups:
        logged = [run for run in group.runs if run.weights is not None]
        for run in logged:
            assert run.weights is not None
            name = "weights" if single else f"weights_{slug(group.label)}_s{run.seed}"
            files += draw_weights(run.weights, out / f"{name}.png")
        if logged and logged[0].weights is not None:
            entries.append((group, logged[0].weights))
    if len(entries) > 1:
        files += draw_all_weights(entries, out / "weights_all.png")
    return files
