"""Projections onto the convex domains of the collaboration weights (paper, Remark 1)."""

from __future__ import annotations

from cobo_dist.lazy import Tensor, torch


def box(weights: Tensor) -> Tensor:
    """Project each weight onto [0, 1] (equation 1 and Algorithm 1, line 13), any shape."""
    return weights.clamp(0.0, 1.0)


def simplex(rows_kn: Tensor, outside_kn: Tensor | None = None) -> Tensor:
    """Project each row onto {w >= 0, sum w = 1} (the language experiment), in float64.

    Entries that are true in `outside_kn` are left out: they become 0, and the others sum to 1. A row
    without other entries becomes 0. Exact, by sorting: w = max(v - theta, 0), where theta follows from the
    number of entries that stay above 0 (Held, Wolfe and Crowder, 1974). The bits of a row depend on that
    row alone.

    >>> simplex(torch.tensor([[0.5, 0.25], [3.0, 0.0]])).tolist()
    [[0.625, 0.375], [1.0, 0.0]]
    """
    v_kn = rows_kn.double()
    if outside_kn is not None:
        v_kn = v_kn.masked_fill(outside_kn, -torch.inf)
    # A shift of the row does not change the projection; with its largest entry at 0, 1e30 costs no digits.
    v_kn = v_kn - v_kn.max(dim=1, keepdim=True).values
    sorted_kn = v_kn.sort(dim=1, descending=True).values
    excess_kn = sorted_kn.cumsum(dim=1) - 1.0  # sequential, so that other rows change nothing
    counts_n = torch.arange(1, v_kn.shape[1] + 1, dtype=torch.float64, device=v_kn.device)
    support_k1 = (sorted_kn * counts_n > excess_kn).sum(dim=1, keepdim=True).clamp(min=1)
    theta_k1 = excess_kn.gather(1, support_k1 - 1) / support_k1
    w_kn = (v_kn - theta_k1).clamp(min=0.0)
    w_kn = w_kn / w_kn.cumsum(dim=1)[:, -1:]  # removes the rounding error of theta
    if outside_kn is not None:
        w_kn = w_kn.masked_fill(outside_kn, 0.0)
    return w_kn
