"""Distances of all pairs of rows, from their inner products.

Shapes: n clients, c of them on this rank, m clients that are grouped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Linkage = Literal["average", "complete", "single"]

_ROUNDING = 1e-12
"""Rows whose squared distance is less than so much of their squared norms are taken for equal."""


def squared_distances(
    products_cn: Floats, squares_n: Floats, ids: Sequence[int] | NDArray[np.int64]
) -> Floats:
    """Return ||a_i - a_j||^2 [c, n] of the clients `ids` with all; the same bits for (i, j) and (j, i).

    It is 0 for rows that are equal: products of equal rows may differ by rounding.

    Args:
        products_cn: the inner products <a_i, a_j>.
        squares_n: the squared norms of all rows.
        ids: the clients of the products' rows.

    >>> squared_distances(np.array([[9.0, 6.0]]), np.array([9.0, 5.0]), [0]).tolist()
    [[0.0, 2.0]]
    """
    norms_cn = squares_n[np.asarray(ids), None] + squares_n
    found_cn = norms_cn - 2.0 * products_cn
    return np.where(found_cn <= _ROUNDING * norms_cn, 0.0, found_cn)


def linked_groups(
    distances_mm: Floats, linkage: Linkage, *, count: int = 0, threshold: float = 0.0
) -> NDArray[np.int64]:
    """Return the group of each client [m], numbered from 0 in the order of first members.

    Agglomerative: the two nearest groups are merged until `count` groups are left or, without a count, until
    no two are as near as `threshold`.

    >>> linked_groups(np.abs(np.subtract.outer([0, 9, 1, 8], [0, 9, 1, 8])), "average", count=2).tolist()
    [0, 1, 0, 1]
    """
    from scipy.cluster.hierarchy import cut_tree, fcluster
    from scipy.cluster.hierarchy import linkage as link
    from scipy.spatial.distance import squareform

    if len(distances_mm) < 2:
        return np.zeros(len(distances_mm), dtype=np.int64)
    # 1 - cosine may round to just below 0, which scipy refuses.
    off_mm = np.maximum(distances_mm, 0.0) * (1.0 - np.eye(len(distances_mm)))
    merges = link(squareform(off_mm, checks=False), method=linkage)
    labels_m = (
        cut_tree(merges, n_clusters=[count])[
            :, 0
        ]  # exactly as many, also where distances are equal
        if count
        else fcluster(merges, threshold, criterion="distance")
    )
    _, first, label_m = np.unique(labels_m, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    found: NDArray[np.int64] = order[label_m.reshape(-1)]
    return found
