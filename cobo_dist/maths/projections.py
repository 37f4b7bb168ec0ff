"""Projections onto the convex domains that the collaboration weights live in (paper, Remark 1)."""

from __future__ import annotations

from torch import Tensor


def box(weights: Tensor) -> Tensor:
    """Project each weight onto [0, 1] (equation 1 and Algorithm 1, line 13), any shape."""
    return weights.clamp(0.0, 1.0)
