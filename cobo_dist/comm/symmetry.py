"""`comm.check`: whether a W that is said to be symmetric is. Ranks send each other their blocks of W.

Shapes: c clients on this rank, n in all, k rows of one rank at a time.
"""

from __future__ import annotations

import numpy as np
import torch

from cobo_dist.comm.placement import Placement
from cobo_dist.comm.transports.base import Transport
from cobo_dist.maths.weights import Weights

MAX_NUMBERS = 1 << 22
"""Weights that a rank sends at a time."""


def find_asymmetry(weights: Weights, placement: Placement, transport: Transport) -> str:
    """Return a w_ij of this rank that is not its w_ji; empty if there is none. All ranks call this."""
    rank, found = transport.rank, ""
    step = max(1, MAX_NUMBERS // placement.clients)
    for begin in range(0, max(map(len, placement.by_rank)), step):
        ids_of = [ids[begin : begin + step] for ids in placement.by_rank]
        rows_kn = weights.rows(np.arange(begin, begin + len(ids_of[rank])))
        blocks = [torch.from_numpy(rows_kn[:, ids].copy()) for ids in placement.by_rank]
        sends = {peer: block for peer, block in enumerate(blocks) if peer != rank}
        receives = {
            peer: sends[peer].new_empty(len(ids_of[peer]), weights.shape[0]) for peer in sends
        }
        transport.exchange(
            {peer: block for peer, block in sends.items() if block.numel()},
            {peer: block for peer, block in receives.items() if block.numel()},
            "weights",
        ).wait()
        for peer, theirs in (receives | {rank: blocks[rank]}).items():
            found = found or _differing(weights, ids_of[peer], theirs.numpy())
    return found


def _differing(weights: Weights, ids_k: np.ndarray, theirs_kc: np.ndarray) -> str:
    """Compare the rows of the clients `ids_k` with this rank's columns of the same clients."""
    rows_c = np.arange(weights.shape[0])
    rows_kc, columns_kc = np.broadcast_arrays(rows_c[None, :], ids_k[:, None])
    mine_kc = weights.at(rows_kc.ravel(), columns_kc.ravel()).reshape(theirs_kc.shape)
    wrong = np.argwhere((mine_kc != theirs_kc) & ~(np.isnan(mine_kc) & np.isnan(theirs_kc)))
    if not len(wrong):
        return ""
    k, row = wrong[0].tolist()
    i, j = int(weights.ids_c[row]), int(ids_k[k])
    return (
        f"the weights say symmetric=True, but w[{i}, {j}] is {mine_kc[k, row]:.9g} and w[{j}, {i}] is "
        f"{theirs_kc[k, row]:.9g}; leave out symmetric, or make them equal"
    )
