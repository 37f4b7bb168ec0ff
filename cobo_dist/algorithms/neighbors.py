"""How clients that take part in a round read the models of the others, in virtual time too.

Shapes: c clients on this rank, n in all, d parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.base import Clients, Exchange, RunContext
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import to_device, upload
from cobo_dist.maths.weights import Weights


class NeighborModels:
    """The models of all clients as others read them.

    They are X itself, unless models are compressed (`comm.compression`): then each client has one more row,
    the model that others know. Or unless models arrive later than at the next tick (`clock.latency`,
    `clock.bandwidth`): then each client has two more rows, the model that others read, and the one that is on
    its way to them. A model that waits to be sent is the client's row of X.
    """

    def __init__(self, clients: Clients, exchange: Exchange, context: RunContext) -> None:
        """Let all clients read the models that the run starts with."""
        self.clients, self.exchange, self.context = clients, exchange, context
        timing = context.timing
        self.discounts = timing is not None and timing.discounts
        self.rows: dict[str, Tensor] = {}  # beside X, [c, d] each
        if timing is not None and timing.reads_late:
            self.rows = {name: clients.x_cd.clone() for name in ("read", "on_its_way")}
        elif context.compression is not None:  # the first models are known
            self.rows = {"read": clients.x_cd.clone()}

    @property
    def read_cd(self) -> Tensor:
        """What others read of this rank's clients, [c, d]."""
        return self.rows.get("read", self.clients.x_cd)

    @property
    def known_to_pairs(self) -> Tensor:
        """The models [c, d] whose midpoints pairs take: both clients of a pair know them."""
        return self.clients.x_cd if self.context.compression is None else self.read_cd

    def publish(self, t: int) -> None:
        """Let those that take part in round t send what others do not know of their models yet.

        Only where models are compressed.
        """
        if (compression := self.context.compression) is None:
            return
        x_cd, read_cd = self.clients.x_cd, self.read_cd
        part_c = self.context.taking_part(t)[list(self.clients.ids)]
        for row in np.flatnonzero(part_c).tolist():  # one at a time, which bounds the memory
            at = slice(row, row + 1)
            read_cd[at].add_(compression.of(x_cd[at] - read_cd[at]))

    def begin_round(self, t: int) -> None:
        """Let the models arrive that others read in round t, before X changes in it."""
        self.publish(t)
        timing = self.context.timing
        if timing is None or not timing.reads_late:
            return
        moment, ids = timing.at(t), list(self.clients.ids)
        x_cd, (read_cd, way_cd) = self.clients.x_cd, self.rows.values()
        for to_cd, from_cd, mask_n in (
            (read_cd, way_cd, moment.lands_n),
            (read_cd, x_cd, moment.arrives_n),
            (way_cd, x_cd, moment.departs_n),
        ):
            at = to_device(np.flatnonzero(mask_n[ids]), x_cd.device)
            to_cd[at] = from_cd[at]

    def among(self, weights: Weights, t: int) -> Weights:
        """Return the weights that count in round t: of those that take part, to those that they hear."""
        context = self.context
        if context.all_take_part:
            return weights
        part_n, heard_n = context.taking_part(t), context.heard(t) > 0
        receivers_n = None if np.array_equal(part_n, heard_n) else part_n
        return weights.among(heard_n, receivers_n=receivers_n)

    def factors(self, t: int) -> NDArray[np.float64] | None:
        """Return what each model counts in round t, [n]; None: all that are heard count 1."""
        return self.context.heard(t) if self.discounts else None

    def mix(self, weights: Weights, t: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of columns with sum_k w_ik f_k y_k there: y_k is what others read of client k.

        f_k are the `factors`. Client i itself counts with its model of now.
        """
        x_cd, factors_n = self.clients.x_cd, self.factors(t)
        if not self.rows and factors_n is None:
            yield from self.exchange.mix(weights, x_cd)
            return
        read_cd = self.read_cd
        ids = list(self.clients.ids)
        own_c1 = upload(torch.from_numpy(weights.at(np.arange(len(ids)), weights.ids_c)), x_cd)
        factor_c1 = upload(
            torch.ones(len(ids), 1)
            if factors_n is None
            else torch.from_numpy(factors_n[ids, None]),
            x_cd,
        )
        sent_cd = read_cd if factors_n is None else read_cd * factor_c1
        for at, mixed in self.exchange.mix(weights, sent_cd):
            own_ck = (factor_c1 * x_cd[:, at]).sub_(sent_cd[:, at])
            yield at, mixed.add_(own_ck.mul_(own_c1[:, None]))
