"""Gradient alignment: the statistic that moves a collaboration weight (equation 1).

A gradient is cut once, in the middle. The owner of the pair's first client multiplies the first
halves, the owner of the second client the second halves, and the two numbers are added in that order
on both sides: each needs only half of the other's gradient, and both get the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEASURES = ("inner", "cosine")

# Below this many elements a row, one batched product and sum is faster than a dot for each row.
_BATCHED_BELOW = 1 << 14
_AT_ONCE = 64
"""Rows of a batched product, which bounds the room that it takes."""


def middle(size: int) -> int:
    """Return where a gradient of `size` elements is cut, on a 64-byte boundary for 4-byte numbers."""
    return min(size, -(-(size // 2) // 16) * 16)


def row_dots(
    a_md: Tensor,
    rows_a: NDArray[np.int64],
    b_md: Tensor,
    rows_b: NDArray[np.int64],
    *,
    deterministic: bool = False,
) -> NDArray[np.float64]:
    """Return the inner product of row `rows_a[k]` of `a_md` with row `rows_b[k]` of `b_md`: [k].

    The shorter list of rows decides k. `deterministic` adds every row by itself in one fixed order,
    so that a row's number does not depend on how many rows stand beside it. Long rows are multiplied
    where they lie, without a copy.
    """
    count = min(len(rows_a), len(rows_b))
    if not count:
        return np.empty(0)
    if deterministic or a_md.shape[1] >= _BATCHED_BELOW:
        products = [
            torch.mul(a_md[a], b_md[b]).sum() if deterministic else torch.dot(a_md[a], b_md[b])
            for a, b in zip(rows_a[:count], rows_b[:count], strict=True)
        ]
        dots = torch.stack(products)
    else:
        a, b = (torch.from_numpy(rows[:count]).to(a_md.device) for rows in (rows_a, rows_b))
        # Plain indexing takes four times as long as `index_select` for such rows.
        dots = torch.cat(
            [
                (a_md.index_select(0, some_a) * b_md.index_select(0, some_b)).sum(dim=1)
                for some_a, some_b in zip(
                    torch.split(a, _AT_ONCE), torch.split(b, _AT_ONCE), strict=True
                )
            ]
        )
    answer: NDArray[np.float64] = dots.double().cpu().numpy()
    return answer


def measure(dots_m: Tensor, squares_m2: Tensor, kind: str) -> Tensor:
    """Return the alignment [m] from inner products [m] and the two squared norms [m, 2].

    `inner` is the paper's <g_i, g_j>. `cosine` divides by the norms, so that gamma means the same at
    the start and late in training, when gradients are small; a zero gradient is aligned with nothing.
    """
    if kind == "inner":
        return dots_m
    if kind == "cosine":
        norms = squares_m2.prod(dim=1).sqrt()
        return torch.where(norms > 0, dots_m / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)
    raise ValueError(f"alignment {kind!r} is none of {', '.join(MEASURES)}")


def midpoints(own_e: Sequence[Tensor], partner_e: Sequence[Tensor], z_ed: Tensor) -> Tensor:
    """Write the midpoints z = (x_i + x_j)/2 of models x_i and x_j [d] each into `z_ed`; return it.

    Both owners of a pair get the same bits.
    """
    long = z_ed.shape[1] >= _BATCHED_BELOW  # such a row is halved while it is in the cache
    for x_i, x_j, z_d in zip(own_e, partner_e, z_ed.unbind(), strict=True):
        torch.add(x_i, x_j, out=z_d)
        if long:
            z_d.mul_(0.5)
    return z_ed if long else z_ed.mul_(0.5)
