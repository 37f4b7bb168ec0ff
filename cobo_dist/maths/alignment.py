"""Gradient alignment: the statistic that updates a collaboration weight (equation 1).

A gradient is cut once, in the middle. The owner of the pair's first client multiplies the first halves, the
owner of the second client the second halves, and both add the two numbers in that order. So each needs only
half of the other's gradient, and both get the same bits.

Shapes: m rows, d parameters, k inner products, e ends of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import numbers_at_once, some_rows

Floats = NDArray[np.float64]

_BATCHED_BELOW = 1 << 14
"""Numbers in a row below which one batched product and sum is faster than a dot product for each row."""
_BATCHED_ROWS = 64
"""Rows of one batched product, which bounds its memory."""


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
) -> Tensor:
    """Return the inner products [k] of rows `rows_a` of `a_md` with rows `rows_b` of `b_md`.

    The shorter list of rows decides k. `deterministic` sums every row by itself in one fixed order, so
    that its result does not depend on the number of rows. On a CPU, long rows are multiplied in place,
    without a copy. On a GPU they are multiplied together, since every operation costs a launch.
    """
    count, size = min(len(rows_a), len(rows_b)), a_md.shape[1]
    if not count:
        return a_md.new_empty(0)
    if deterministic or (size >= _BATCHED_BELOW and not a_md.is_cuda):
        products = [
            torch.mul(a_md[a], b_md[b]).sum() if deterministic else torch.dot(a_md[a], b_md[b])
            for a, b in zip(rows_a[:count], rows_b[:count], strict=True)
        ]
        return torch.stack(products)
    together = _BATCHED_ROWS
    if a_md.is_cuda:
        together = max(1, numbers_at_once(a_md.device) // max(1, size))
    parts = [slice(at, min(count, at + together)) for at in range(0, count, together)]
    dots = [(some_rows(a_md, rows_a[k]) * some_rows(b_md, rows_b[k])).sum(dim=1) for k in parts]
    return dots[0] if len(dots) == 1 else torch.cat(dots)


def dots(a_md: Tensor, b_md: Tensor) -> Tensor:
    """Return the inner products [m] of rows; on a CPU each by itself, whatever rows are beside it."""
    every = np.arange(len(a_md))
    return row_dots(a_md, every, b_md, every, deterministic=not a_md.is_cuda)


def squared_norms(rows_md: Tensor) -> Tensor:
    """Return the squared norms [m] of rows, float64, as `dots` computes them."""
    return dots(rows_md, rows_md).double()


@dataclass(frozen=True)
class Statistic:
    """A function of two gradients g_i and g_j, i < j, that says how well they align.

    `function` takes the inner products [e] and, if it `needs_norms`, the squared norms of g_i [e] and of
    g_j [e], all float64. Both owners of a pair call it with the same bits, so W stays symmetric.
    """

    name: str
    function: Callable[..., Floats]
    needs_norms: bool = False

    def __call__(self, dots_e: Floats, squares_e2: Floats) -> Floats:
        """Return the alignment [e].

        Raises:
            ValueError: the function did not return a number for each pair, finite where the products are.
        """
        norms = (squares_e2[:, 0], squares_e2[:, 1]) if self.needs_norms else ()
        found_e = np.asarray(self.function(dots_e, *norms), dtype=np.float64)
        if found_e.shape != dots_e.shape:
            raise ValueError(
                f"statistic {self.name} returned shape {found_e.shape} for {len(dots_e)} pairs; return one "
                "number for each pair"
            )
        # Products that are not finite come from a model that diverged, which is told as that.
        known_e = np.isfinite(dots_e) & np.all([np.isfinite(one_e) for one_e in norms], axis=0)
        wrong = np.flatnonzero(known_e & ~np.isfinite(found_e))
        if len(wrong):
            first = int(wrong[0])
            given = ", ".join(f"{one_e[first]:.6g}" for one_e in (dots_e, *norms))
            raise ValueError(
                f"statistic {self.name} returned {found_e[first]} for ({given}); return a finite number for "
                "every finite inner product, also where a norm is 0"
            )
        return found_e


def inner(dots_e: Floats) -> Floats:
    """Return the paper's <g_i, g_j>."""
    return dots_e


def cosine(dots_e: Floats, squares_i_e: Floats, squares_j_e: Floats) -> Floats:
    """Return <g_i, g_j> / (||g_i|| ||g_j||), 0 for a gradient of 0.

    So gamma means the same at the start and late in training, when gradients are small.
    """
    norms_e = np.sqrt(squares_i_e * squares_j_e)
    tiny = np.finfo(norms_e.dtype).tiny
    return np.where(norms_e > 0, dots_e / np.maximum(norms_e, tiny), 0.0)


def midpoints(first_e: Sequence[Tensor], second_e: Sequence[Tensor], z_ed: Tensor) -> Tensor:
    """Write the midpoint (x_i + x_j)/2 of each pair of models [d] into a row of `z_ed`; return `z_ed`.

    Both owners of a pair name its first client's model first, and get the same bits.
    """
    if z_ed.is_cuda and len(z_ed):
        rows = list(z_ed.unbind())
        torch._foreach_copy_(rows, list(first_e))
        # A model that arrived may be of the type that travels, which `lerp` does not mix.
        torch._foreach_lerp_(rows, [x_j.to(z_ed.dtype) for x_j in second_e], 0.5)
        return z_ed
    long = z_ed.shape[1] >= _BATCHED_BELOW  # halve such a row while it is in the cache
    for x_i, x_j, z_d in zip(first_e, second_e, z_ed.unbind(), strict=True):
        torch.add(x_i, x_j, out=z_d)
        if long:
            z_d.mul_(0.5)
    return z_ed if long else z_ed.mul_(0.5)
