"""An order of clients for pictures of W where the true clusters are unknown: linked clients side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def seriate(weights_nn: npt.NDArray[np.floating[Any]]) -> Ints:
    """Return the leaves of the single-linkage tree of a dense W, [n].

    Cut at any weight, the tree has the connected components of the links of at least that weight, larger
    direction of the two. So each component is next to each other, whatever the threshold of a link. Where
    all weights are equal, clients keep their order.

    >>> seriate(np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=np.float32)).tolist()
    [1, 0, 2]
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    n = len(weights_nn)
    strength_nn = np.nan_to_num(weights_nn.astype(np.float64), posinf=0.0, neginf=0.0)
    strength_nn = np.maximum(strength_nn, strength_nn.T)
    strength_m = squareform(strength_nn - np.diag(np.diag(strength_nn)), checks=False)
    if n < 2 or np.ptp(strength_m) == 0:
        return np.arange(n)
    return np.asarray(leaves_list(linkage(strength_m.max() - strength_m, "single")), dtype=np.int64)


def by_component(component_n: Ints) -> Ints:
    """Return clients by their connected component, the largest first, [n]: for a W of many clients.

    >>> by_component(np.array([0, 1, 2, 1])).tolist()
    [1, 3, 0, 2]
    """
    sizes_n = np.bincount(component_n)[component_n]
    return np.lexsort((component_n, -sizes_n)).astype(np.int64)
