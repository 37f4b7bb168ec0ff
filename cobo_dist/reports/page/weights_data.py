"""W of one run as data of the page; `templates/weights.js` draws it.

The page holds one byte a weight: 0 to 254 for weights from 0 to `top` (1 or, where a client's weights sum to
1, the largest of the run), 255 for NaN. From one snapshot to the next few weights change, so the page holds
the differences between snapshots, which zlib makes small.

Shapes: n clients, k snapshots.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from cobo_dist.maths.graph import link_threshold
from cobo_dist.reports.reading import Weights
from cobo_dist.reports.reading.seriation import seriate

MAX_LEVEL = 254
"""The byte of the largest weight."""
NAN_LEVEL = 255
"""The byte of a weight that is not a number."""

BY_TRUTH, LINKED, BY_NUMBER = "by true cluster", "linked side by side", "by number"
"""Orders of clients on the page."""


def quantize(matrices: npt.NDArray[np.floating[Any]], top: float = 1.0) -> npt.NDArray[np.uint8]:
    """Return weights as bytes of the same shape: 0..254 for 0..top, clipped; 255 for NaN."""
    with np.errstate(invalid="ignore"):
        levels = np.clip(np.rint(matrices * (MAX_LEVEL / top)), 0, MAX_LEVEL)
    return np.where(np.isnan(matrices), NAN_LEVEL, levels).astype(np.uint8)


def pack(levels: npt.NDArray[np.uint8]) -> str:
    """Return snapshots as text: differences of neighbors modulo 256, by zlib, in base64. [k, n, n]"""
    steps = np.diff(levels, axis=0, prepend=np.zeros_like(levels[:1]))
    return base64.b64encode(zlib.compress(steps.tobytes(), 6)).decode("ascii")


def unpack(text: str, n: int) -> npt.NDArray[np.uint8]:
    """Return the snapshots of `pack`, as the page's JavaScript does. [k, n, n]"""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(-1, n, n)
    return np.cumsum(steps, axis=0, dtype=np.uint8)


def weights_data(weights: Weights, kept: float) -> dict[str, Any]:
    """Return W of a run as a JSON object, with the share `kept` of its snapshots, evenly spread.

    The first and the last snapshot are always among them; they show all of a W that never moves. Clients are
    in the order of their true clusters, or linked clients are side by side where these are unknown.
    """
    count = len(weights.rounds)
    most = max(2, int(count * kept)) if weights.moves else 2
    chosen = np.unique(np.linspace(0, count - 1, most).round().astype(int))
    clusters, order, cells = weights.clusters, weights.order, weights.cells
    matrices = weights.weights[chosen][:, order][:, :, order]  # [chosen, n, n]
    data: dict[str, Any] = {
        "n": len(order),
        "rounds": weights.rounds[chosen].tolist(),
        "thinned": len(chosen) < count and weights.moves,
        "clients": [] if cells else order.tolist(),
        "orders": {} if cells else _orders(weights, matrices[-1]),
        "clusters": None if clusters is None or cells else clusters[order].tolist(),
        "later": _later(weights),
        "truths": _truths(weights),
        "top": weights.top,
        "end": f"{weights.top:.2g}, the largest weight of the run" if weights.share else "1",
        "threshold": link_threshold(weights.share),
        "weights": pack(quantize(matrices, weights.top)),
    }
    if weights.absent is not None:  # rows that are drawn grey
        data["absent"] = [
            np.flatnonzero(away).tolist() for away in weights.absent[chosen][:, order]
        ]
    if cells:
        links = [cells.links[name] for name in ("within", "across") if name in cells.links]
        means = [[series[round_] for series in links] for round_ in data["rounds"]]
        data["cells"] = {
            "per": f"A pixel is the mean weight of up to {cells.largest} x {cells.largest} clients.",
            "means": means if len(links) == 2 else None,
        }
    return data


def _orders(weights: Weights, last: npt.NDArray[np.floating[Any]]) -> dict[str, list[int]]:
    """The orders to choose from, as places in the order of the data, which comes first."""
    n = len(last)
    known = weights.clusters is not None or weights.true_order is not None
    orders = {BY_TRUTH: list(range(n))} if known else {}
    orders[LINKED] = seriate(last).tolist() if known else list(range(n))
    orders[BY_NUMBER] = np.argsort(weights.order, kind="stable").tolist()
    return orders


def _later(weights: Weights) -> list[tuple[int, list[int]]]:
    """The rounds from which on clients are in other clusters, with these, in the order of the picture."""
    if weights.later_clusters is None or weights.cells:
        return []
    return [
        (number, clusters[weights.order].tolist())
        for number, clusters in zip(weights.switches, weights.later_clusters, strict=True)
    ]


def _truths(weights: Weights) -> list[tuple[int, str]]:
    """The right W where clusters do not say it, or the mean of cells, each with its first round."""
    if weights.cells:
        oracle = weights.cells.oracle
        return [] if oracle is None else [(0, pack(quantize(oracle[None])))]
    if weights.true_graph is None:
        return []
    graphs = [(number, weights.graph_at(number)) for number in (0, *weights.switches)]
    places = np.ix_(weights.order, weights.order)
    return [
        (number, pack(quantize(graph[places][None], float(graph.max()) or 1.0)))
        for number, graph in graphs
        if graph is not None
    ]
