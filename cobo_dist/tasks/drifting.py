"""Examples of clients that change cluster during a run (`task.drift`).

Where client i moves to the cluster of client d, it has the concept of d, its donor, from then on.

Shapes: n clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor
from cobo_dist.maths.true_graph import TrueGraph, Truth
from cobo_dist.scenario.drift import Drift, DriftEvent, drift_of

if TYPE_CHECKING:
    from cobo_dist.tasks.examples import ClientExamples

Splits = Mapping[str, Tensor]
"""Of one client: its example indices by split."""


class Concepts:
    """What clients have when they move: here their own examples, with the labels of their donors."""

    def __init__(self, clusters: Sequence[int] | None, lack: str = "") -> None:
        """Move clients between `clusters` [n]; None: they cannot move, for the reason `lack`."""
        self.clusters, self.lack = clusters, lack

    def truth(self, donors: Sequence[int]) -> tuple[Sequence[int] | None, TrueGraph | None]:
        """Return true clusters, and how alike clients are, where these [n] are their donors."""
        assert self.clusters is not None, "a task without clusters has no drift"
        return [self.clusters[donor] for donor in donors], None

    def moved(
        self, found: ClientExamples, moves: Sequence[tuple[int, int]]
    ) -> tuple[ClientExamples, list[Splits]]:
        """Return the examples, and for each (client, donor) the client's splits with that concept.

        There may be more examples, behind the others. A client keeps its number of training examples.
        """
        return found, [
            {name: own[client] for name, own in found.splits.items()} for client, _ in moves
        ]


class CurrentExamples:
    """Which examples each client has in the round under way, and with whose labels."""

    def __init__(
        self,
        splits: Mapping[str, Sequence[Tensor]],
        drift: Drift | None,
        moved: Mapping[tuple[int, int], Splits],
    ) -> None:
        """Start before round 1. `moved`: the splits of a client with the concept of a donor."""
        self._splits, self._drift, self._moved = splits, drift, moved
        self.donors = list(range(len(splits["train"])))
        """The client whose labels each client has, [n]."""

    def begin_round(self, r: int) -> bool:
        """Take up what round r has; return whether a client changes cluster."""
        if self._drift is None:
            return False
        before, self.donors = self.donors, self._drift.donors(r).tolist()
        return before != self.donors

    def of_client(self, client: int, split: str) -> Tensor:
        """Return the example indices of one client."""
        donor = self.donors[client]
        return self._splits[split][client] if donor == client else self._moved[client, donor][split]

    def of(self, split: str) -> list[Tensor]:
        """Return the example indices of each client, [n]."""
        return [self.of_client(client, split) for client in range(len(self.donors))]


def with_drift(
    loaded: ClientExamples, events: Sequence[DriftEvent], order: Sequence[int], seed: int
) -> tuple[ClientExamples, Drift | None, dict[tuple[int, int], Splits]]:
    """Return the examples, the drift, and the splits that clients have after they moved.

    `order`: which loaded client has the id 0, 1, ...; drift and splits go by ids.

    Raises:
        ConfigError: clients have no clusters to move to, or events that do not fit them.
    """
    if not events:
        return loaded, None, {}
    concepts = loaded.concepts
    if concepts.clusters is None:
        raise ConfigError(f"task.drift moves clients to another cluster, and {concepts.lack}")
    drift = drift_of(events, [concepts.clusters[client] for client in order], seed)
    moves = list(drift.moves())
    loaded, splits = concepts.moved(loaded, [(order[i], order[donor]) for i, donor in moves])
    return loaded, drift, dict(zip(moves, splits, strict=True))


def truth_of(loaded: ClientExamples, drift: Drift | None, order: Sequence[int]) -> Truth:
    """Return clusters and graph of each round, with the clients in this order."""
    phases = [(loaded.clusters, loaded.graph)]
    for r in drift.rounds if drift else ():
        donors = list(order)  # of loaded clients
        for client, donor in enumerate(drift.donors(r).tolist() if drift else ()):
            donors[order[client]] = order[donor]
        phases.append(loaded.concepts.truth(donors))
    clusters, graphs = zip(*phases, strict=True)
    return Truth(
        tuple(None if one is None else tuple(one[i] for i in order) for one in clusters),
        tuple(None if one is None or one.are_clusters else one.reordered(order) for one in graphs),
        drift.rounds if drift else (),
    )
