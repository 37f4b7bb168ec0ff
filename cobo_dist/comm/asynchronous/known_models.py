"""The models of clients on other ranks as they last arrived, and sums with them.

Shapes: c clients on this rank, n in all, d parameters, k models in one letter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.maths.flat import columns_at_once, to_device

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]


class KnownModels:
    """What this rank knows of others' models. It keeps those of clients that its own give a weight."""

    def __init__(self, ids_c: Ints, dtype: torch.dtype, device: torch.device) -> None:
        """Know nothing yet; `ids_c` are the clients of this rank."""
        self.ids_c, self.dtype, self.device = ids_c, dtype, device
        self._models: dict[int, tuple[int, Tensor]] = {}  # by client: the round, and the model [d]

    def put(self, ids_k: Ints, rows_kd: Tensor, r: int) -> None:
        """Take models of round r, where they are newer than those known."""
        rows_kd = rows_kd.to(self.device, self.dtype)
        for client, row_d in zip(ids_k.tolist(), rows_kd, strict=True):
            if r >= self._models.get(client, (-1, row_d))[0]:
                self._models[client] = r, row_d

    def mix(self, w_cn: Floats, x_cd: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of columns with sum_k w_ik x_k there [c, columns].

        A client whose model has never arrived counts with the receiver's own, so that it does not pull.
        """
        others = np.ones(w_cn.shape[1], dtype=bool)
        others[self.ids_c] = False
        linked = np.flatnonzero(others & (w_cn != 0).any(axis=0))
        self._models = {i: self._models[i] for i in linked.tolist() if i in self._models}
        known = np.array(list(self._models), dtype=np.int64)
        unknown = np.setdiff1d(linked, known)
        here_cc = w_cn[:, self.ids_c]
        here_cc[np.diag_indices(len(here_cc))] += w_cn[:, unknown].sum(axis=1)
        own_cc, other_ck = (
            torch.from_numpy(np.ascontiguousarray(one)).to(x_cd.device, x_cd.dtype)
            for one in (here_cc, w_cn[:, known])
        )
        models = [model_d for _, model_d in self._models.values()]
        for at in columns_at_once(len(x_cd) + len(models), x_cd.shape[1], x_cd.device):
            mixed = own_cc @ x_cd[:, at]
            if models:
                mixed += other_ck @ torch.stack([model_d[at] for model_d in models])
            yield at, mixed

    def ages(self, r: int) -> list[int]:
        """Return how many rounds before round r each known model was sent."""
        return [max(0, r - sent) for sent, _ in self._models.values()]


def linked_rows(w_cn: Floats, theirs_n: NDArray[np.bool_]) -> Ints:
    """Return the rows of W whose clients give a weight to one of some others: those others want the model."""
    found: Ints = np.flatnonzero((w_cn[:, theirs_n] != 0).any(axis=1))
    return found


def rows_to_send(x_cd: Tensor, rows_k: Ints, wire: torch.dtype) -> Tensor:
    """Return a copy of some rows on the CPU, in the type that travels."""
    return x_cd[to_device(rows_k, x_cd.device)].to("cpu", wire, copy=True)
