"""Sketches: a few random sums of many numbers, which keep inner products on average.

Column l of a row is multiplied by a random sign and added to number l mod k (a count sketch with fixed
buckets; Charikar, Chen and Farach-Colton, ICALP 2002). For two rows with the same signs, <S a, S b> is on
average <a, b>, and its standard deviation is about ||a|| ||b|| sqrt((1 + cos^2) / k). A sketch is linear.
It hides nothing by itself. With a clip and noise (the Gaussian mechanism), what one row reveals is bounded.

Shapes: m rows, d columns, k numbers of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import numbers_at_once

_BITS = 64  # signs in a word


@dataclass(frozen=True)
class Sketch:
    """Sketches of `size` numbers for round t: their signs are a pure function of (seed, t, i, j).

    >>> import torch
    >>> two = torch.tensor([[3.0, 0.0, 0.0, 4.0], [3.0, 0.0, 0.0, 4.0]])
    >>> s_md = Sketch(2, seed=0, t=0).of_rows(two)
    >>> s_md.abs().sort().values.tolist(), bool((s_md[0] == s_md[1]).all())
    ([[3.0, 4.0], [3.0, 4.0]], True)
    """

    size: int
    seed: int
    t: int
    clip: float = 0.0  # greatest norm of a sketch; 0: any
    noise: float = 0.0  # standard deviation of each number's noise, in units of the clip

    def columns(self, d: int) -> int:
        """Return how many numbers stand for a row of d: no more than the row has."""
        return min(self.size, d)

    def of_pairs(
        self, rows_md: Tensor, owners_m: NDArray[np.int64], partners_m: NDArray[np.int64]
    ) -> Tensor:
        """Return the sketches [m, k] of rows of clients that meet partners; a pair has its own signs.

        With a clip and noise, which each row has of its own.
        """
        pairs = (np.minimum(owners_m, partners_m), np.maximum(owners_m, partners_m))
        ids = (torch.from_numpy(one_m).to(rows_md.device) for one_m in pairs)
        t = torch.tensor(self.t, device=rows_md.device)
        found_mk = self._of(rows_md, seeds.keys(self.seed, "sketch", t, *ids))
        if self.clip:
            norms_m1 = found_mk.norm(dim=1, keepdim=True)
            found_mk = found_mk * (self.clip / norms_m1.clamp(min=self.clip))
        if self.noise:
            noise_mk = torch.empty_like(found_mk)
            for row_k, owner, partner in zip(noise_mk, owners_m, partners_m, strict=True):
                name = seeds.key(self.seed, "sketch noise", self.t, int(owner), int(partner))
                row_k.copy_(seeds.normals(name, len(row_k), device=row_k.device))
            found_mk = found_mk.add(noise_mk, alpha=self.clip * self.noise)
        return found_mk

    def of_rows(self, rows_md: Tensor) -> Tensor:
        """Return the sketches [m, k] of rows with the same signs, so that all pairs of rows compare."""
        name = seeds.keys(self.seed, "sketch", torch.tensor(self.t, device=rows_md.device))
        return self._of(rows_md, name.expand(len(rows_md)))

    def _of(self, rows_md: Tensor, names_m: Tensor) -> Tensor:
        """Sketch each row by its (signed) key; rows that are no longer than a sketch stay as they are."""
        k = self.columns(rows_md.shape[1])
        if k == rows_md.shape[1]:
            return rows_md
        found_mk = rows_md.new_zeros(len(rows_md), k)
        # Whole words and whole turns through the k sums, some columns of a row at a time.
        width = k * _BITS * max(1, numbers_at_once(rows_md.device) // (k * _BITS))
        for row_d, name, sum_k in zip(rows_md, names_m, found_mk, strict=True):
            for at in range(0, len(row_d), width):
                part = row_d[at : at + width]
                signed = part * _signs(name, at, len(part)).to(part.dtype)
                whole = len(part) // k * k
                sum_k += signed[:whole].view(-1, k).sum(dim=0)
                sum_k[: len(part) - whole] += signed[whole:]
        return found_mk


def _signs(name: Tensor, start: int, count: int) -> Tensor:
    """Return signs start.. of a key, int8 [count] of -1 and 1; `start` is a multiple of 64."""
    words = seeds.words(name, -(-count // _BITS), start // _BITS, name.device)
    bits = (words[:, None] >> torch.arange(_BITS, device=name.device)) & 1
    return bits.view(-1)[:count].to(torch.int8).mul_(2).sub_(1)
