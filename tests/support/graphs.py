"""Fabricated graphs for the tests of their figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cobo_dist.reports.reading.graph import Graph, graph_of
from cobo_dist.reports.reading.weights import Weights


def block_weights(
    clusters: Sequence[int] | np.ndarray, across: float = 0.0, within: float = 1.0
) -> np.ndarray:
    """W of blocks, float32 [n, n]."""
    labels = np.asarray(clusters)
    same = labels[:, None] == labels[None, :]
    return np.where(same, within, across).astype(np.float32)


def snapshots(*matrices: np.ndarray, **others: Any) -> Weights:
    """The snapshots of a run after rounds 0, 10, 20, ..."""
    clusters = others.pop("clusters", None)
    known = None if clusters is None else np.asarray(clusters)
    return Weights(10 * np.arange(len(matrices)), np.stack(matrices), known, **others)


def graph(matrix: np.ndarray, threshold: float | None = None, **others: Any) -> Graph:
    """The graph of one W."""
    return graph_of(snapshots(matrix, **others), threshold=threshold)
