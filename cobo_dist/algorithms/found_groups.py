"""FedAvg within groups of clients that are found while training: what CFL and one-shot clustering share.

Shapes: n clients, c on this rank, d parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.base import AlgorithmState, Newcomers, RunContext
from cobo_dist.algorithms.fedavg import FedAvg, WeightedAveragingConfig
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import empty_rows, to_device
from cobo_dist.maths.weights import Weights


class FoundGroupsConfig(WeightedAveragingConfig):
    """What a method says that compares the updates of all clients."""

    def comparisons(self, t: int, context: RunContext) -> float:
        """All clients are compared with one another when it is time."""
        return float(context.clients**2)


class FoundGroups(FedAvg):
    """FedAvg within groups that are found from the clients' updates; at first all clients are one group.

    An update is what the local work of a round changes, x_i after it minus x_i before it: -eta(t) times the
    direction. Where only some clients take part in a round, the last update of a client is compared, with
    the step size of its own round. W is 1 within groups.
    """

    learns_weights = True
    newcomers_start = "best_component"

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        n, x_cd = self.context.clients, self.clients.x_cd
        self.found_n = np.zeros(n, dtype=np.int64)  # the group of each client
        self.known_n = np.zeros(n, dtype=np.uint8)  # whether a client has an update
        self.updates_cd: Tensor | None = None  # the last ones, where not all are of this round
        if not self.context.all_take_part:
            self.updates_cd = empty_rows(*x_cd.shape, dtype=x_cd.dtype, device=x_cd.device).zero_()

    def local_updates(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Work locally.

        Returns:
            The losses [c], this round's directions [c, d], and what is compared [c, d]: the negated last
            updates. Where all clients take part these are the directions, since one eta(t) scales all alike.
        """
        clients, part_n = self.clients, self.context.taking_part(t)
        losses_c = clients.gradients(t)
        direction_cd = clients.direction()
        clients.x_cd.add_(direction_cd, alpha=-clients.eta(t))
        self.known_n[part_n] = 1
        if self.updates_cd is None:
            return losses_c, direction_cd, direction_cd
        rows = to_device(np.flatnonzero(part_n[list(clients.ids)]), clients.x_cd.device)
        now_kd = direction_cd.index_select(0, rows).mul_(clients.eta(t))
        self.updates_cd.index_copy_(0, rows, now_kd)
        return losses_c, direction_cd, self.updates_cd

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Put each newcomer into the group whose model it got, and give clients that join that model."""
        for client, returns, company_n in zip(
            newcomers.ids_k, newcomers.returns_k, newcomers.company_kn, strict=True
        ):
            if company_n.any() and not returns:
                self.found_n[client] = self.found_n[company_n.argmax()]
        self.use_found()
        super().join(t, newcomers)

    def products(self, rows_cd: Tensor) -> NDArray[np.float64]:
        """Return the inner products of all clients' rows on every rank, [n, n]."""
        return self.exchange.all_gather(self.exchange.gram(rows_cd)).astype(np.float64)

    def use_found(self) -> None:
        """Average within the groups found, also after a restart, which fills them in."""
        if not np.array_equal(self.found_n, self.groups_n):
            self.use_groups(Weights(self.clients.ids, self.found_n, symmetric=True))

    def state(self) -> AlgorithmState:
        """Return the groups, who has an update, and the last updates where they are kept."""
        shared = {
            "groups": torch.from_numpy(self.found_n),
            "known": torch.from_numpy(self.known_n),
        }
        rows = {} if self.updates_cd is None else {"updates": self.updates_cd}
        return AlgorithmState(rows=rows, shared=shared)

    def possible_weights(self) -> dict[str, Weights | None]:
        """Return W of the true clusters, if the task knows them."""
        if self.context.clusters is None:
            return {}
        found = Weights(self.clients.ids, self.context.clusters, symmetric=True)
        return {"W = true clusters": found}
