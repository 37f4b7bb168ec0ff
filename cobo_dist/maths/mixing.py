"""The cheapest exact way to bring sum_k w_ik x_k from one rank's clients to another's.

For the block B = W[receiver's clients, sender's clients] the sender can send
  rows   the models that have a non-zero column in B,
  sums   the partial sums B X, one for each non-zero row of B that differs from the others (clients
         of one cluster soon have equal rows, and at W = 1 all have), or
  total  the sum of all its models, plus a correction for 1 - B by rows or by sums.
All three are exact; `plan_block` counts the models each would send and takes the least. Receiver and
sender make the same plan from the same block, so nothing about the plan is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class BlockPlan:
    """How one block B [r, s] travels.

    Kind `rows`: the sender's models number `send` cross, and the receiver multiplies by `factor`
    [r, k]. Kind `sums`: the sender multiplies its models by `factor` [k, s], and the receiver's row
    `receivers[i]` takes sum number `send[i]`. With `total`, both are about 1 - B.
    """

    kind: str  # "rows" or "sums"
    total: bool
    send: NDArray[np.intp]
    factor: NDArray[np.floating]
    receivers: NDArray[np.intp]

    @property
    def models(self) -> int:
        """Number of models that cross."""
        crossing: int = self.factor.shape[1 if self.kind == "rows" else 0]
        return crossing + self.total


def plan_rows(block_rs: NDArray[np.floating]) -> BlockPlan:
    """Plan to send every model with a non-zero column in the block."""
    columns = np.flatnonzero(block_rs.any(axis=0))
    return BlockPlan("rows", False, columns, block_rs[:, columns], np.arange(len(block_rs)))


def plan_sums(block_rs: NDArray[np.floating]) -> BlockPlan:
    """Plan to send the partial sum of every distinct non-zero row of the block."""
    receivers = np.flatnonzero(block_rs.any(axis=1))
    number: dict[bytes, int] = {}  # of each distinct row, in the order of appearance
    sums = [number.setdefault(block_rs[row].tobytes(), len(number)) for row in receivers]
    send = np.asarray(sums, dtype=np.intp)
    first = receivers[np.unique(send, return_index=True)[1]]
    return BlockPlan("sums", False, send, block_rs[first], receivers)


def plan_total(block_rs: NDArray[np.floating]) -> BlockPlan:
    """Plan to send the sum of all models and the cheaper correction for 1 - block."""
    missing = 1.0 - block_rs
    inner = min(plan_rows(missing), plan_sums(missing), key=lambda plan: plan.models)
    return BlockPlan(inner.kind, True, inner.send, inner.factor, inner.receivers)


def plan_block(block_rs: NDArray[np.floating]) -> BlockPlan:
    """Return the plan for block [r, s] that sends the fewest models; on a tie, the simpler one."""
    plans = (plan_rows(block_rs), plan_sums(block_rs), plan_total(block_rs))
    return min(plans, key=lambda plan: plan.models)


def pack(plan: BlockPlan, x_sd: Tensor, out_kd: Tensor) -> None:
    """Write what the sender of models `x_sd` sends under `plan` into `out_kd`, k = plan.models."""
    head = int(plan.total)
    if plan.total:
        torch.sum(x_sd, dim=0, out=out_kd[0])
    if len(plan.send) and plan.kind == "rows":
        torch.index_select(x_sd, 0, _index(plan.send, x_sd), out=out_kd[head:])
    elif len(plan.send):
        torch.mm(_like(plan.factor, x_sd), x_sd, out=out_kd[head:])


def unpack(plan: BlockPlan, payload_kd: Tensor, into_rd: Tensor) -> None:
    """Add the block's part of sum_k w_ik x_k to the receiver's `into_rd` from what was sent."""
    head, sign = int(plan.total), -1 if plan.total else 1
    if plan.total:
        into_rd.add_(payload_kd[0])
    if plan.kind == "rows" and len(plan.send):
        into_rd.addmm_(_like(plan.factor, into_rd), payload_kd[head:], alpha=sign)
    elif plan.kind == "sums":
        for receiver, number in zip(plan.receivers, plan.send, strict=True):
            into_rd[receiver].add_(payload_kd[head + number], alpha=sign)


def ordered_sum(
    weights_cn: NDArray[np.floating],
    model: Callable[[int], Tensor],
    into_cd: Tensor,
    term_d: Tensor,
) -> None:
    """Write sum_k w_ik x_k into each row of `into_cd`, adding in client order k = 0, 1, ..., n-1.

    `model(k)` gives x_k [d]. Each product and each sum is rounded by itself, whichever ranks the
    models came from: the result is bitwise the same for any placement. `term_d` is scratch.
    """
    into_cd.zero_()
    for row, weights_n in enumerate(weights_cn):
        for k in np.flatnonzero(weights_n):
            torch.mul(model(int(k)), float(weights_n[k]), out=term_d)
            into_cd[row].add_(term_d)


def _index(numbers: NDArray[np.intp], like: Tensor) -> Tensor:
    return torch.from_numpy(numbers).to(like.device)


def _like(matrix: NDArray[np.floating], like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(like.device, like.dtype)
