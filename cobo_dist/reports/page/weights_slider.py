"""The data of the page's slider over all snapshots of W; `templates/weights_slider.js` draws them.

The page holds one byte a weight: 0 to 254 for weights from 0 to `top` (1 or, where a client's weights
sum to 1, the largest of the run), 255 for NaN. Without JavaScript the slider stays hidden and the static
figures remain.

Shapes: n clients, k snapshots.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cobo_dist.reports.grouping import Group
from cobo_dist.reports.reading import Weights

MAX_LEVEL = 254
"""The byte of the largest weight."""
NAN_LEVEL = 255
"""The byte of a weight that is not a number."""
MAX_SLIDER_BYTES = 3_000_000
"""The most bytes of weights in one slider, before base64."""


@dataclass(frozen=True)
class WeightsSlider:
    """What the template needs: a `name` that makes ids unique on the page, and the runs as JSON objects.

    `thinned` says that some snapshots are left out.
    """

    name: str
    runs: list[dict[str, Any]]
    thinned: bool


def make_slider(groups: Sequence[Group], name: str) -> WeightsSlider | None:
    """Return the slider for the runs of some groups, None where no run has logged weights.

    If all snapshots exceed `MAX_SLIDER_BYTES`, every run keeps as many as fit, evenly spread, with the
    first and the last among them.
    """
    # The page opens with the first run.
    groups = sorted(groups, key=lambda group: group.method.role != "emphasized")
    runs = [
        (f"{group.title}, seed {run.seed}", run.weights)
        for group in groups
        for run in group.runs
        if run.weights is not None
    ]
    if not runs:
        return None
    kept = min(1.0, MAX_SLIDER_BYTES / sum(weights.weights.size for _, weights in runs))
    return WeightsSlider(name, [_run(title, weights, kept) for title, weights in runs], kept < 1.0)


def quantize(matrices: npt.NDArray[np.floating[Any]], top: float = 1.0) -> npt.NDArray[np.uint8]:
    """Return weights as bytes of the same shape: 0..254 for 0..top, clipped; 255 for NaN."""
    with np.errstate(invalid="ignore"):
        levels = np.clip(np.rint(matrices * (MAX_LEVEL / top)), 0, MAX_LEVEL)
    return np.where(np.isnan(matrices), NAN_LEVEL, levels).astype(np.uint8)


def _run(title: str, weights: Weights, kept: float) -> dict[str, Any]:
    """One run, with the share `kept` of its snapshots and the clients in the order of their clusters."""
    count = len(weights.rounds)
    # The first and the last snapshot show all of a W that never moves.
    most = max(2, int(count * kept)) if weights.moves else 2
    chosen = np.unique(np.linspace(0, count - 1, most).round().astype(int))
    clusters, order, cells = weights.clusters, weights.order, weights.cells
    matrices = weights.weights[chosen][:, order][:, :, order]  # [chosen, n, n]
    run = {
        "title": title,
        "n": len(order),
        "rounds": weights.rounds[chosen].tolist(),
        "clients": order.tolist(),
        "clusters": None if clusters is None else clusters[order].tolist(),
        "top": weights.top,
        "end": f"{weights.top:.2g}, the largest weight of the run" if weights.share else "1",
        "weights": _base64(matrices, weights.top),
    }
    if weights.absent is not None:  # rows that are drawn grey
        run["absent"] = [np.flatnonzero(away).tolist() for away in weights.absent[chosen][:, order]]
    if cells:
        links = [cells.links[name] for name in ("within", "across") if name in cells.links]
        means = [[series[round_] for series in links] for round_ in run["rounds"]]
        run |= {"clients": [], "clusters": None}
        run["cells"] = {
            "per": f" A pixel is the mean weight of up to {cells.largest} x {cells.largest} clients.",
            "oracle": None if cells.oracle is None else _base64(cells.oracle),
            "means": means if len(links) == 2 else None,
        }
    return run


def _base64(matrices: npt.NDArray[np.floating[Any]], top: float = 1.0) -> str:
    return base64.b64encode(quantize(matrices, top).tobytes()).decode("ascii")
