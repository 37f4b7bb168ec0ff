"""An order of clients in which linked clients are side by side, and the tree that it comes from.

Shapes: n clients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_TIE = 1e-4
"""The most that the distance of two clients' numbers adds to that of their weights, of the largest weight."""


def strengths(weights_nn: npt.NDArray[np.floating[Any]]) -> Floats:
    """Return how strongly two clients are linked: the larger direction of W, 0 for NaN and oneself. [n, n]"""
    strength_nn = np.nan_to_num(weights_nn.astype(np.float64), posinf=0.0, neginf=0.0)
    np.fill_diagonal(strength_nn, 0.0)
    return np.asarray(np.maximum(strength_nn, strength_nn.T))


def single_linkage(strength_nn: Floats) -> tuple[Floats, Floats]:
    """Return SciPy's single-linkage tree of at least two clients, and the weight at each of its nodes.

    Cut at any weight, the tree has the connected components of the links of at least that weight. So each
    component is next to each other in the tree's leaves, whatever the threshold of a link. Its branches
    are turned so that neighbors are linked as strongly as they can be; between equally strong ones the
    clients' numbers decide.

    Returns:
        linkage [n-1, 4], whose distances are the largest weight minus the weight; weights [n-1].
    """
    from scipy.cluster.hierarchy import linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    most = strength_nn.max()
    distance_m = squareform(most - strength_nn, checks=False)
    ids = np.arange(len(strength_nn))
    apart_m = squareform(np.abs(ids[:, None] - ids) / len(ids), checks=False)  # less than 1
    # Single linkage depends on the order of distances only, so their ranks leave space for ties.
    values, rank_m = np.unique(distance_m, return_inverse=True)
    tree = linkage(rank_m + 0.5 * apart_m, "single")
    tree[:, 2] = values[np.floor(tree[:, 2]).astype(np.int64)]
    tree = optimal_leaf_ordering(tree, distance_m + _TIE * (most or 1.0) * apart_m)
    return tree, most - tree[:, 2]


def seriate(weights_nn: npt.NDArray[np.floating[Any]]) -> Ints:
    """Return the leaves of `single_linkage` of a dense W, [n]; the first has a smaller number than the last.

    >>> seriate(np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=np.float32)).tolist()
    [0, 2, 1]
    """
    from scipy.cluster.hierarchy import leaves_list

    strength_nn, n = strengths(weights_nn), len(weights_nn)
    if n < 2 or np.ptp(strength_nn[~np.eye(n, dtype=bool)]) == 0:
        return np.arange(n)
    order = np.asarray(leaves_list(single_linkage(strength_nn)[0]), dtype=np.int64)
    return order if order[0] < order[-1] else order[::-1]


def by_component(component_n: Ints) -> Ints:
    """Return clients by their connected component, the largest first, [n]: for a W of many clients.

    >>> by_component(np.array([0, 1, 2, 1])).tolist()
    [1, 3, 0, 2]
    """
    sizes_n = np.bincount(component_n)[component_n]
    return np.lexsort((component_n, -sizes_n)).astype(np.int64)
