"""What clients show in place of models: few numbers of their inputs, or of their predictions.

Shapes: c clients on this rank, k others, s numbers of a signature, F numbers of an input, q vectors of a
basis, P predictions of C numbers each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.clients.learning_task import LearningTask
from cobo_dist.maths.subspaces import Angle, angle_between, principal_basis

Floats = NDArray[np.float64]
_BYTE = 256
"""Places of predictions travel as their bytes, which every floating type holds exactly."""
_AT_ONCE = 1 << 16
"""So many numbers of a client's predictions are compared at once."""


class InputSignatures:
    """Bases of the principal directions of clients' training inputs, of each class apart or of all."""

    def __init__(
        self,
        task: LearningTask,
        vectors: int,
        by_class: bool,
        angle: Angle,
        clients: Sequence[int],
        like: Tensor,
    ) -> None:
        """Take `vectors` directions of each group of examples of these clients; rows are like a tensor."""
        columns = basis_columns(task, vectors, by_class)
        self.rows_cs = like.new_zeros(len(clients), task.input_size * columns)
        for row_s, client in zip(self.rows_cs, clients, strict=True):
            inputs_bf, labels_b = task.training_inputs(client)
            groups_b = labels_b if by_class else np.zeros_like(labels_b)
            basis_fq = torch.from_numpy(principal_basis(inputs_bf, groups_b, vectors))
            row_s.view(-1, columns)[:, : basis_fq.shape[1]] = basis_fq.to(like)
        self.columns, self.angle = columns, angle
        self.own = self._bases(self.rows_cs)

    def distances(self, others_ks: Tensor) -> Floats:
        """Return the angles between this rank's clients and others [c, k], in degrees."""
        others = self._bases(others_ks)
        angles = [angle_between(own, other, self.angle) for own in self.own for other in others]
        return np.array(angles, dtype=np.float64).reshape(len(self.own), len(others))

    def _bases(self, rows_ks: Tensor) -> list[Floats]:
        """Return bases that are orthonormal again after rounding, without the columns that clients lack."""
        bases = rows_ks.double().cpu().numpy().reshape(len(rows_ks), -1, self.columns)
        return [np.asarray(np.linalg.qr(one[:, one.any(axis=0)])[0]) for one in bases]


def basis_columns(task: LearningTask, vectors: int, by_class: bool) -> int:
    """Return the most directions that a client of the task shows."""
    counts = task.label_counts() if by_class else None
    groups = 1 if counts is None else int((counts > 0).sum(axis=1).max())
    return min(task.input_size, groups * vectors)


class PredictionLayout:
    """How a row has a client's predictions: the `top` largest numbers of each, then their places in bytes."""

    def __init__(self, predictions: int, outputs: int, top: int) -> None:
        self.predictions, self.outputs, self.top = predictions, outputs, min(top, outputs)
        self.digits = 1
        while _BYTE**self.digits < outputs:
            self.digits += 1
        self.kept = predictions * self.top
        self.size = self.kept * (1 + self.digits)

    def row(self, predictions_pc: Tensor) -> Tensor:
        """Return the row [s] of some predictions."""
        largest = predictions_pc.reshape(self.predictions, self.outputs).topk(self.top, dim=1)
        digits = [largest.indices // _BYTE**digit % _BYTE for digit in range(self.digits)]
        return torch.cat([one.reshape(-1).to(predictions_pc) for one in (largest.values, *digits)])

    def dense(self, rows_ks: Tensor) -> Iterator[Tensor]:
        """Yield the predictions in rows [k, some * C], float64, with 0 for what is left out."""
        values, *digits = (
            part.reshape(len(rows_ks), self.predictions, self.top)
            for part in torch.split(rows_ks, self.kept, dim=1)
        )
        places = torch.zeros_like(values, dtype=torch.int64)
        for power, digit in enumerate(digits):
            places += digit.long() * _BYTE**power
        some = max(1, _AT_ONCE // self.outputs)
        parts = (torch.split(one, some, dim=1) for one in (values, places))
        for value, place in zip(*parts, strict=True):
            shape = (*value.shape[:2], self.outputs)
            zeros = torch.zeros(shape, dtype=torch.float64, device=value.device)
            yield zeros.scatter_(2, place, value.double()).flatten(1)


class PredictionSignatures:
    """What clients' models predict for examples that all know."""

    def __init__(
        self, layout: PredictionLayout, predict: Sequence[Callable[[], Tensor]], like: Tensor
    ) -> None:
        """Ask each client for its predictions [P, C]; rows are like a tensor."""
        self.layout = layout
        self.rows_cs = like.new_empty(len(predict), layout.size)
        for row_s, one in zip(self.rows_cs, predict, strict=True):
            row_s.copy_(layout.row(one()))

    def distances(self, others_ks: Tensor) -> Floats:
        """Return the sums of absolute differences between this rank's clients and others [c, k]."""
        distances_ck = torch.zeros(
            len(self.rows_cs), len(others_ks), dtype=torch.float64, device=others_ks.device
        )
        every = (self.layout.dense(rows) for rows in (self.rows_cs, others_ks))
        for own, others in zip(*every, strict=True):
            distances_ck += torch.cdist(own, others, p=1.0)
        return distances_ck.cpu().numpy()
