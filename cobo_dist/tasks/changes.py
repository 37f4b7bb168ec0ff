"""Per-client changes, and those of labels. What `task.change.name` names; `input_changes` has others.

A change goes by clusters of clients that follow each other, of equal or given sizes, or by a client's number.

Shapes: N examples, n clients, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.registry import class_of, register
from cobo_dist.settings import Section, as_tuple

Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple)]


class ChangeSection(Section):
    """The config of a change; by default it changes nothing, and all clients are alike."""

    name: str = ""

    def clusters_of(self, clients: int) -> Sequence[int] | None:
        """Return the cluster of each client, [n]; None: clients differ, and there are no clusters.

        Raises:
            ConfigError: keys that do not fit so many clients.
        """
        return [0] * clients

    def graph_of(self, clients: int, classes: int) -> TrueGraph | None:
        """Return how alike clients are; by default, those of one cluster are. None: it cannot be said."""
        clusters = self.clusters_of(clients)
        return None if clusters is None else TrueGraph.of(clusters)

    def label_maps(self, clients: int, classes: int, seed: int) -> NDArray[np.int64]:
        """Return each client's label for each class, int64 [n, C]."""
        return np.broadcast_to(np.arange(classes), (clients, classes))

    def inputs(self, x: NDArray[Any], owners: NDArray[np.int64], seed: int) -> NDArray[Any]:
        """Return the inputs of all examples as their clients, int64 [N], see them.

        `x` are bytes of images uint8 [N, H, W, channels], or numbers as the model takes them [N, ...].
        """
        return x


register.new_kind(
    "change",
    "a class derived from cobo_dist.ChangeSection",
    check=class_of(ChangeSection),
    section_of=lambda target: target,
)


@register.change("none")
class NoChange(ChangeSection):
    """Clients see the data as they are."""


class ClusterChange(ChangeSection):
    """A change that clients of a cluster have in common."""

    clusters: int = Field(2, ge=1, description="clusters of equal size, or nearly so")
    cluster_sizes: Sizes = Field(
        (), description="clients in each cluster, in place of clusters: [7, 1] makes one outlier"
    )

    def clusters_of(self, clients: int) -> Sequence[int] | None:
        """Return the clusters in order."""
        sizes = self.cluster_sizes
        if sizes and sum(sizes) != clients:
            raise ConfigError(
                f"task.change.cluster_sizes={list(sizes)} are {sum(sizes)} clients, and the partition has "
                f"{clients}; make them equal"
            )
        if self.clusters > clients and not sizes:
            raise ConfigError(
                f"task.change.clusters={self.clusters} is more than the {clients} clients; lower it"
            )
        if sizes:
            return [k for k, size in enumerate(sizes) for _ in range(size)]
        return [i * self.clusters // clients for i in range(clients)]


@register.change("labels")
class LabelChange(ClusterChange):
    """Each cluster permutes the labels (CoBo's cross-silo setting)."""

    def label_maps(self, clients: int, classes: int, seed: int) -> NDArray[np.int64]:
        """Return the permutations."""
        clusters = self.clusters_of(clients) or [0] * clients
        maps = [
            seeds.permutation(seeds.key(seed, "change labels", cluster), classes).numpy()
            for cluster in range(max(clusters) + 1)
        ]
        return np.asarray(np.stack(maps)[np.asarray(clusters)])


@register.change("hierarchy")
class HierarchyChange(ClusterChange):
    """Clusters in groups: those of a group agree on a share of the labels, those of two groups on none.

    Each group permutes all labels, and each of its clusters rotates some of them further. The right weight of
    two clients is the share of labels on which their groups and clusters make them agree.
    """

    clusters: int = Field(4, ge=1, description="clusters of equal size, or nearly so")
    groups: int = Field(2, ge=1, description="groups of clusters")
    shared: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the labels that all clusters of a group have in common",
    )

    def _tree(self, clients: int, classes: int) -> tuple[list[int], NDArray[np.int64], int]:
        """Return each client's cluster, each cluster's group, and how many labels clusters rotate."""
        clusters = list(self.clusters_of(clients) or ())
        count, moved = max(clusters) + 1, round((1 - self.shared) * classes)
        group_of = np.arange(count) * self.groups // count
        most = int(np.bincount(group_of).max())
        if self.groups > count:
            raise ConfigError(
                f"task.change.groups={self.groups} is more than the {count} clusters; lower it"
            )
        if most >= classes:
            raise ConfigError(
                f"task.change.groups={self.groups} has {most} clusters in a group, and clusters can rotate "
                f"{classes - 1} of {classes} labels at most; raise task.change.groups or lower "
                "task.change.clusters"
            )
        if not most <= moved < classes:
            fitting = 1 - (most if moved < most else classes - 1) / classes
            raise ConfigError(
                f"task.change.shared={self.shared:g} of {classes} labels leaves {moved} for {most} clusters "
                f"of a group to rotate, of which {most} to {classes - 1} are needed; set "
                f"task.change.shared={fitting:.4g}"
            )
        return clusters, group_of, moved

    def graph_of(self, clients: int, classes: int) -> TrueGraph:
        """Return 1 within clusters, the share of common labels within groups, and 0 between them."""
        clusters, group_of, moved = self._tree(clients, classes)

        def alike(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
            common = np.where(group_of[one] == group_of[other], 1 - moved / classes, 0.0)
            return np.where(one == other, 1.0, common)

        return TrueGraph.of(clusters, alike)

    def label_maps(self, clients: int, classes: int, seed: int) -> NDArray[np.int64]:
        """Return the group's permutation, of which cluster k of the group rotates some labels by k."""
        clusters, group_of, moved = self._tree(clients, classes)
        maps = []
        for cluster, group in enumerate(group_of):
            own = seeds.permutation(
                seeds.key(seed, "change hierarchy", int(group)), classes
            ).numpy()
            place = cluster - int(np.searchsorted(group_of, group))
            maps.append(np.concatenate([np.roll(own[:moved], place), own[moved:]]))
        return np.asarray(np.stack(maps)[np.asarray(clusters)])
