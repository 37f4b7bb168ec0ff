"""Clients that change rank during a run: `comm.placement=adaptive`.

Every `comm.placement_every` rounds the coordinator examines W. If another placement sends fewer models for
the same sums, and saves more than the move costs, all ranks continue as if the run had been resumed on that
placement. Models, buffers, the state of optimizers and algorithms, and rows of W travel as raw bytes, so no
number changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.config import CommConfig
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.placement_search import Ids, Move, models_sent, propose
from cobo_dist.maths.weights import Weights
from cobo_dist.storage.schema import PlacementRow, PlacementSummary
from cobo_dist.tracking.run_logger import RunLogger
from cobo_dist.tracking.weight_snapshots import gather_weights
from cobo_dist.training.learner import Learner

MAX_PAYBACK_SHARE = 0.25
"""A move must save what it costs within this share of the remaining rounds, since W may change again."""

_ROWS_AT_ONCE = 64  # of W, as dense rows
_ALIGNMENT_BYTES = 8  # of tensors in a payload: the longest number of any type


# -- rows of W -----------------------------------------------------------------------------------------


def matrix_rows(algorithm: Algorithm, row: int) -> list[Tensor]:
    """Return a client's row of W and of each other matrix, as dense rows [n]."""
    return [
        torch.from_numpy(matrix.rows(np.array([row]))[0])
        for matrix in algorithm.matrices().values()
    ]


def put_rows(algorithm: Algorithm, rows: Iterable[tuple[int, list[Tensor]]]) -> None:
    """Set rows of W and of the other matrices from pairs (row number, what `matrix_rows` returns)."""
    rest = iter(rows)
    while chunk := list(islice(rest, _ROWS_AT_ONCE)):
        numbers, rows_k = zip(*chunk, strict=True)
        for matrix, rows_kn in zip(
            algorithm.matrices().values(), zip(*rows_k, strict=True), strict=True
        ):
            matrix.put_rows(np.array(numbers), torch.stack(rows_kn).numpy())


# -- one client as bytes -------------------------------------------------------------------------------


def _state(clients: ClientBatch, algorithm: Algorithm, row: int) -> list[Tensor]:
    """Return views of all that a client keeps between rounds, except its rows of W and other matrices."""
    rows = algorithm.state().rows.values()
    return [*clients.client_state(row).values(), *(held[row] for held in rows)]


def _padded_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor takes in a payload."""
    return -(-tensor.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _slots(payload_b: Tensor, like: list[Tensor]) -> Iterator[Tensor]:
    """Yield a view of the payload for each tensor of `like`, in its type and shape."""
    at = 0
    for one in like:
        yield payload_b[at : at + one.nbytes].view(one.dtype).view(one.shape)
        at += _padded_bytes(one)


class ClientMigrator:
    """Decides with all ranks whether clients move, and moves them."""

    def __init__(
        self,
        comm: CommConfig,
        rounds: int,
        link_threshold: float,
        learner: Learner,
        run_logger: RunLogger | None,
    ) -> None:
        """Move the clients of `learner` in a run of `rounds`; a weight above `link_threshold` is a link."""
        self.comm, self.rounds, self.link_threshold = comm, rounds, link_threshold
        self.learner, self.exchange, self.run_logger = learner, learner.exchange, run_logger
        x_cd = learner.clients.x_cd
        wire = x_cd.dtype if comm.dtype == "model" else getattr(torch, comm.dtype)
        self.model_bytes = learner.clients.layout.size * wire.itemsize

    def is_due(self, r: int) -> bool:
        """Return whether ranks call `migrate` after round r."""
        is_adaptive = self.comm.placement == "adaptive"
        return is_adaptive and r < self.rounds and r % self.comm.placement_every == 0

    def migrate(self, r: int) -> None:
        """Move clients if that pays; the learner then has an algorithm over the clients that came.

        All ranks call this after the same round, with all rows flushed.
        """
        began = time.monotonic()
        move = None
        weights = self._gather()
        if weights is not None:
            # What moving one client costs, in models a round over the rounds that may pay for it.
            price = self._payload_bytes() / self.model_bytes
            price /= MAX_PAYBACK_SHARE * (self.rounds - r)
            move = propose(
                weights, self.exchange.placement, self.link_threshold, self.learner.algorithm.sums,
                price=price, deterministic=self.exchange.deterministic,
            )  # fmt: skip
        owners = list(move.placement.owners) if move else []
        owners = json.loads(self.exchange.transport.broadcast(json.dumps(owners).encode()))
        if not owners:
            return
        sent = self.exchange.traffic.bytes["moving"]
        self._move(Placement(tuple(owners), self.exchange.placement.ranks))
        sent = self.exchange.traffic.bytes["moving"] - sent
        records = self.exchange.gather(sent.to_bytes(8, "little"))
        if self.run_logger is not None and move is not None:
            moved = sum(int.from_bytes(one, "little") for one in records)
            self.run_logger.placement(self._row(r, move, moved, time.monotonic() - began))

    def summary(self) -> PlacementSummary | None:
        """Return what moving cost in the whole run and what it saves, on the coordinator.

        None elsewhere, and where clients do not move. All ranks call this at the end.
        """
        if self.comm.placement == "static":
            return None
        weights = self._gather()
        if weights is None or self.run_logger is None:
            return None
        now, sums = self.exchange.placement, self.learner.algorithm.sums
        static, here = (
            models_sent(weights, one, sums, deterministic=self.exchange.deterministic)
            for one in (Placement.contiguous(now.clients, now.ranks), now)
        )
        return PlacementSummary(
            bytes_moving=self.run_logger.bytes["moving"],
            models_static=static,
            models=here,
            owners=list(now.owners),
        )

    def _gather(self) -> Weights | None:
        """Bring all rows of W to the coordinator."""
        whole, sent = gather_weights(self.exchange, self.learner.algorithm.weights, "moving")
        if self.run_logger is not None:
            self.run_logger.bytes["moving"] += sent
        return whole

    def _row(self, r: int, move: Move, moved: int, seconds: float) -> PlacementRow:
        return PlacementRow(
            round=r,
            clients=len(move.clients),
            bytes=moved,
            seconds=seconds,
            models_before=move.before,
            models_after=move.after,
            mixing_before=move.before * self.model_bytes,
            mixing_after=move.after * self.model_bytes,
        )

    # -- the move ---------------------------------------------------------------------------------

    def _payload_bytes(self) -> int:
        """Return the bytes of one client's payload: the same for all clients."""
        algorithm = self.learner.algorithm
        tensors = [*_state(self.learner.clients, algorithm, 0), *matrix_rows(algorithm, 0)]
        return sum(map(_padded_bytes, tensors))

    def _move(self, placement: Placement) -> None:
        """Move clients and their rows of W; build the algorithm anew over the clients that are here then."""
        clients, algorithm = self.learner.clients, self.learner.algorithm
        rank = self.exchange.transport.rank
        before, after = self.exchange.placement.owner_n, placement.owner_n
        row_of = {client: row for row, client in enumerate(clients.ids)}
        peers = [peer for peer in range(placement.ranks) if peer != rank]
        leaving = {peer: np.flatnonzero((before == rank) & (after == peer)) for peer in peers}
        coming = {peer: np.flatnonzero((before == peer) & (after == rank)) for peer in peers}
        length = self._payload_bytes()
        sends, receives = (
            {
                peer: torch.zeros(len(ids), length, dtype=torch.uint8, device=clients.device)
                for peer, ids in way.items()
                if len(ids)
            }
            for way in (leaving, coming)
        )
        for peer, payload_kb in sends.items():
            for client, payload_b in zip(leaving[peer].tolist(), payload_kb, strict=True):
                state = _state(clients, algorithm, row_of[client])
                state.extend(matrix_rows(algorithm, row_of[client]))
                for slot, one in zip(_slots(payload_b, state), state, strict=True):
                    slot.copy_(one)
        self.exchange.move(placement, sends, receives)
        sends.clear()
        clients.replace(self.exchange.ids)
        self._rebuild(row_of)
        put_rows(self.learner.algorithm, self._unpack(receives, coming))

    def _unpack(
        self, receives: Mapping[int, Tensor], coming: Mapping[int, Ids]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Fill in the state of the clients that came; yield each one's row number and rows of matrices."""
        clients, algorithm = self.learner.clients, self.learner.algorithm
        row_of = {client: row for row, client in enumerate(clients.ids)}
        like = matrix_rows(algorithm, 0)
        for peer, payload_kb in receives.items():
            for client, payload_b in zip(coming[peer].tolist(), payload_kb, strict=True):
                row = row_of[client]
                state = _state(clients, algorithm, row)
                slots = list(_slots(payload_b, [*state, *like]))
                for slot, one in zip(slots, state, strict=False):
                    one.copy_(slot)
                yield row, [slot.cpu() for slot in slots[len(state) :]]

    def _rebuild(self, row_of: Mapping[int, int]) -> None:
        """Build the algorithm anew, with its shared state, and its state of the clients that stayed."""
        clients, old = self.learner.clients, self.learner.algorithm
        new = self.learner.algorithm = self.learner.new_algorithm()
        rows = [row for row, client in enumerate(clients.ids) if client in row_of]
        old_rows = [row_of[clients.ids[row]] for row in rows]
        put_rows(new, ((k, matrix_rows(old, m)) for k, m in zip(rows, old_rows, strict=True)))
        state, before = new.state(), old.state()
        for name, held in state.rows.items():
            held[rows] = before.rows[name][old_rows]
        for name, held in state.shared.items():
            held.copy_(before.shared[name])
