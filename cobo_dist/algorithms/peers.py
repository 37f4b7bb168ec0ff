"""Models of other clients at a client: what methods share that try models on their clients' data.

Shapes: c clients on this rank, n in all, e of them in some rows, k models, d parameters, b buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.base import Clients, Exchange, RunContext
from cobo_dist.algorithms.signatures import Signatures
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import Scratch
from cobo_dist.maths.weights import Weights

NOBODY = -1
"""In place of a peer's id, where a client has fewer peers than others."""

LEAST_COUNT = 1e-9
"""What a client without examples counts, where clients count by them."""

Score = Callable[[Tensor, Tensor, NDArray[np.int64]], Tensor]
"""Returns the losses [e, k] of models [k, d] with buffers [k, b] on the data of the clients in rows [e]."""


class PeerModels:
    """Brings every client of this rank the model of one other client at a time, and no other model.

    Beside the clients' models, a rank keeps one model for each of its clients.
    """

    def __init__(self, ids: Sequence[int], exchange: Exchange, *matrices: Tensor) -> None:
        """Bring rows of these matrices between clients: models, and what else belongs to them."""
        self.ids, self.exchange, self.matrices = ids, exchange, matrices
        self.scratch = Scratch(matrices[0].dtype, matrices[0].device)

    def fetch(self, peer_c: NDArray[np.int64], n: int) -> list[Tensor]:
        """Return the rows [c, d] of the clients `peer_c` among n, of each matrix; of `NOBODY` rows of 0.

        All ranks must call it. The rows stay until the next call.
        """
        is_peer_cn = peer_c[:, None] == np.arange(n)
        one = Weights.of_rows(self.ids, is_peer_cn.astype(np.float32))
        found = []
        for which, rows_cd in enumerate(self.matrices):
            fetched_cd = self.scratch.rows(f"matrix {which}", *rows_cd.shape)
            if rows_cd.shape[1]:
                for at, mixed in self.exchange.mix(one, rows_cd):
                    fetched_cd[:, at].copy_(mixed)
            found.append(fetched_cd)
        return found


def score_each(score: Score, x_cd: Tensor, b_cd: Tensor, rows_e: NDArray[np.int64]) -> Tensor:
    """Return the losses [e] of the models in some rows, each on the data of the client in that row.

    float64, on the device of the models.
    """
    losses_e = torch.empty(len(rows_e), dtype=torch.float64, device=x_cd.device)
    for k, row in enumerate(rows_e.tolist()):
        one = slice(row, row + 1)
        losses_e[k] = score(x_cd[one], b_cd[one], rows_e[k : k + 1])[0, 0]
    return losses_e


def counts(context: RunContext, t: int, weighting: str) -> NDArray[np.float64]:
    """Return what each client counts in an average that its own model is part of, [n], above 0.

    Without examples it counts next to nothing, and keeps its own model where it averages with nobody.
    """
    return np.maximum(context.client_weights(t, weighting), LEAST_COUNT)


def average(clients: Clients, exchange: Exchange, weights: Weights, buffers: str) -> None:
    """x_i <- sum_j w_ij x_j, and the same for the buffers where `buffers` is `averaged`."""
    for rows_cd in (clients.x_cd, clients.b_cd) if buffers == "averaged" else (clients.x_cd,):
        if rows_cd.shape[1]:
            for at, mixed in exchange.mix(weights, rows_cd):
                rows_cd[:, at].copy_(mixed)


def hand_over(clients: Clients, exchange: Exchange, donor_n: NDArray[np.int64]) -> None:
    """Give each client the model and the buffers of client `donor_n`, [n]; its own: it keeps them.

    All ranks must call it.
    """
    given_n = donor_n != np.arange(len(donor_n))
    if not given_n.any():
        return
    rows = np.flatnonzero(given_n[list(clients.ids)])
    ids = np.asarray(clients.ids, dtype=np.int64)[rows]
    one = Weights(clients.ids, range(len(donor_n)))  # 1 for the client itself
    columns, values = np.concatenate([ids, donor_n[ids]]), np.repeat([0.0, 1.0], len(rows))
    one.put(np.concatenate([rows, rows]), columns, values)
    average(clients, exchange, one, "averaged")


def signature_distances(
    signatures: Signatures, exchange: Exchange, among_n: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the distances [c, n] of this rank's clients from those of `among_n`; 0 from others."""
    distances_cn = np.zeros((len(signatures.rows_cs), len(among_n)))
    for ids_k, (others_ks,) in exchange.visits(signatures.rows_cs, among_n=among_n):
        distances_cn[:, ids_k] = signatures.distances(others_ks)
    return distances_cn
