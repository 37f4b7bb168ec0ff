"""Clients that change rank while the run goes on: `comm.placement=adaptive`.

Every so many rounds the coordinator looks at W. If another placement sends fewer models for the same sums,
and saves more than the move costs, all ranks go on as if the run had been resumed on that placement: models,
buffers, optimizers' and algorithms' memories and rows of W travel as they lie in memory. No number changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cobo_dist.algorithms.base import Algorithm
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.placement_search import Ids, Move, models_sent, propose
from cobo_dist.config import Config
from cobo_dist.maths.graph import link_level
from cobo_dist.maths.weights import Weights
from cobo_dist.tracking.run_logger import RunLogger
from cobo_dist.tracking.weight_snapshots import gather_weights

PAY_BACK = 0.25
"""A move must have saved what it cost within this share of the rounds that are left: W may go on changing."""

_ROWS = 64  # of W, written out at once
_ALIGNED = 8  # bytes; no type of a client's tensors has longer numbers


# -- rows of W -----------------------------------------------------------------------------------------


def weight_row(weights: Weights, row: int) -> Tensor:
    """Return one row of W, written out, [n]."""
    return torch.from_numpy(weights.rows(np.array([row]))[0])


def put_rows(weights: Weights, rows: Iterable[tuple[int, Tensor]]) -> None:
    """Set rows of W, some at a time."""
    left = iter(rows)
    while some := list(islice(left, _ROWS)):
        numbers, rows_kn = zip(*some, strict=True)
        weights.put_rows(np.array(numbers), torch.stack(rows_kn).numpy())


# -- one client as bytes -------------------------------------------------------------------------------


def _kept(clients: ClientBatch, algorithm: Algorithm, row: int) -> list[Tensor]:
    """Return views of all that a client keeps between rounds, its row of W left out."""
    rows = algorithm.state().rows.values()
    return [*clients.memory(row).values(), *(held[row] for held in rows)]


def _length(tensors: list[Tensor]) -> int:
    """Return the bytes that tensors take in a parcel."""
    return sum(-(-one.nbytes // _ALIGNED) * _ALIGNED for one in tensors)


def _slots(parcel_b: Tensor, like: list[Tensor]) -> Iterator[Tensor]:
    """Yield the places of tensors in a parcel of bytes, each in its type and shape."""
    at = 0
    for one in like:
        yield parcel_b[at : at + one.nbytes].view(one.dtype).view(one.shape)
        at += _length([one])


class ClientMigrator:
    """Decides with all ranks whether clients move, and moves them."""

    def __init__(
        self,
        config: Config,
        clients: ClientBatch,
        exchange: Exchange,
        rebuild: Callable[[], Algorithm],
        run_logger: RunLogger | None,
    ) -> None:
        """Move `clients`; `rebuild` returns a new algorithm over those that are here at that time."""
        self.config, self.clients, self.exchange = config, clients, exchange
        self.rebuild, self.run_logger = rebuild, run_logger
        self.level = link_level(config.algorithm.equal_share(exchange.placement.clients))
        wire = (
            clients.x_cd if config.comm.dtype == "model" else torch.empty(0, dtype=torch.bfloat16)
        )
        self.model_bytes = clients.layout.size * wire.element_size()

    def is_due(self, r: int) -> bool:
        """Return whether ranks look at W after round r."""
        comm, rounds = self.config.comm, self.config.run.rounds
        return comm.placement == "adaptive" and r < rounds and r % comm.placement_every == 0

    def look(self, r: int, algorithm: Algorithm) -> Algorithm:
        """Move clients if that pays; return the algorithm over the clients that are here then.

        All ranks call this after the same round, with all rows flushed.
        """
        began = time.monotonic()
        move = None
        weights = self._gather(algorithm)
        if weights is not None:
            # In models a round, over the rounds that a move has to pay for itself.
            price = self._parcel_bytes(algorithm) / self.model_bytes
            price /= PAY_BACK * (self.config.run.rounds - r)
            move = propose(
                weights, self.exchange.placement, self.level, algorithm.sums,
                price=price, deterministic=self.exchange.deterministic,
            )  # fmt: skip
        owners = list(move.placement.owners) if move else []
        owners = json.loads(self.exchange.transport.broadcast(json.dumps(owners).encode()))
        if not owners:
            return algorithm
        sent = self.exchange.traffic.bytes["moving"]
        algorithm = self._move(algorithm, Placement(tuple(owners), self.exchange.placement.ranks))
        sent = self.exchange.traffic.bytes["moving"] - sent
        told = self.exchange.gather(sent.to_bytes(8, "little"))
        if self.run_logger is not None and move is not None:
            moved = sum(int.from_bytes(one, "little") for one in told)
            self.run_logger.moved(r, self._row(move, moved, time.monotonic() - began), moved)
        return algorithm

    def summary(self, algorithm: Algorithm) -> dict[str, Any] | None:
        """Return what moving cost in the whole run and what it saves, on the coordinator; None if static.

        All ranks call this at the end.
        """
        if self.config.comm.placement == "static":
            return None
        weights = self._gather(algorithm)
        if weights is None or self.run_logger is None:
            return None
        now = self.exchange.placement
        static, here = (
            models_sent(weights, one, algorithm.sums, deterministic=self.exchange.deterministic)
            for one in (Placement.contiguous(now.clients, now.ranks), now)
        )
        return {
            "bytes_moving": self.run_logger.bytes["moving"],
            "models_static": static,
            "models": here,
            "owners": list(now.owners),
        }

    def _gather(self, algorithm: Algorithm) -> Weights | None:
        """Bring all rows of W to the coordinator."""
        whole, sent = gather_weights(self.exchange, algorithm.weights, "moving")
        if self.run_logger is not None:
            self.run_logger.bytes["moving"] += sent
        return whole

    def _row(self, move: Move, moved: int, seconds: float) -> Mapping[str, Any]:
        return {
            "clients": len(move.clients),
            "bytes": moved,
            "seconds": seconds,
            "models_before": move.before,
            "models_after": move.after,
            "mixing_before": move.before * self.model_bytes,
            "mixing_after": move.after * self.model_bytes,
        }

    # -- the move ---------------------------------------------------------------------------------

    def _parcel_bytes(self, algorithm: Algorithm) -> int:
        """Return the bytes of a client on its way: the same for all."""
        return _length([*_kept(self.clients, algorithm, 0), weight_row(algorithm.weights, 0)])

    def _move(self, algorithm: Algorithm, placement: Placement) -> Algorithm:
        """Let clients and their rows of W move; return an algorithm that goes on with who is here then."""
        clients, rank = self.clients, self.exchange.transport.rank
        before, after = self.exchange.placement.owner_n, placement.owner_n
        row_of = {client: row for row, client in enumerate(clients.ids)}
        peers = [peer for peer in range(placement.ranks) if peer != rank]
        leave = {peer: np.flatnonzero((before == rank) & (after == peer)) for peer in peers}
        come = {peer: np.flatnonzero((before == peer) & (after == rank)) for peer in peers}
        length = self._parcel_bytes(algorithm)
        parcels, boxes = (
            {
                peer: torch.zeros(len(ids), length, dtype=torch.uint8, device=clients.device)
                for peer, ids in way.items()
                if len(ids)
            }
            for way in (leave, come)
        )
        for peer, parcel_kb in parcels.items():
            for client, parcel_b in zip(leave[peer].tolist(), parcel_kb, strict=True):
                held = _kept(clients, algorithm, row_of[client])
                held.append(weight_row(algorithm.weights, row_of[client]))
                for slot, one in zip(_slots(parcel_b, held), held, strict=True):
                    slot.copy_(one)
        self.exchange.move(placement, parcels, boxes)
        parcels.clear()
        clients.replace(self.exchange.ids)
        new = self._rebuilt(algorithm, row_of)
        put_rows(new.weights, self._unpack(new, boxes, come))
        return new

    def _unpack(
        self, new: Algorithm, boxes: Mapping[int, Tensor], come: Mapping[int, Ids]
    ) -> Iterator[tuple[int, Tensor]]:
        """Fill in who has come; yield the number of each one's row, and its row of W."""
        row_of = {client: row for row, client in enumerate(self.clients.ids)}
        like = torch.empty_like(weight_row(new.weights, 0))
        for peer, box_kb in boxes.items():
            for client, box_b in zip(come[peer].tolist(), box_kb, strict=True):
                row = row_of[client]
                held = _kept(self.clients, new, row)
                *slots, weights_n = _slots(box_b, [*held, like])
                for slot, one in zip(slots, held, strict=True):
                    one.copy_(slot)
                yield row, weights_n.cpu()

    def _rebuilt(self, old: Algorithm, row_of: Mapping[int, int]) -> Algorithm:
        """Return a new algorithm with what the old one remembers of all, and of the clients that stayed."""
        new = self.rebuild()
        rows = [row for row, client in enumerate(self.clients.ids) if client in row_of]
        old_rows = [row_of[self.clients.ids[row]] for row in rows]
        put_rows(
            new.weights,
            ((k, weight_row(old.weights, m)) for k, m in zip(rows, old_rows, strict=True)),
        )
        state, before = new.state(), old.state()
        for name, held in state.rows.items():
            held[rows] = before.rows[name][old_rows]
        for name, held in state.shared.items():
            held.copy_(before.shared[name])
        return new
