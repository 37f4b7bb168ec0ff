"""Per-client changes of inputs: images are rotated, numbers scaled, noise is added.

Shapes: N examples, n clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.registry import register
from cobo_dist.tasks.changes import ClusterChange


class GradedChange(ClusterChange):
    """A change of the inputs that grows with the number of the cluster or of the client."""

    by: Literal["clusters", "clients"] = Field(
        "clusters", description="the change grows from cluster to cluster, or from client to client"
    )

    def clusters_of(self, clients: int) -> Sequence[int] | None:
        """Return the clusters; None where every client differs."""
        found = super().clusters_of(clients)
        return found if self.by == "clusters" else None

    def graph_of(self, clients: int, classes: int) -> TrueGraph | None:
        """Return clusters, or how near clients are on the way from the first to the last."""
        if self.by == "clusters":
            return super().graph_of(clients, classes)
        return TrueGraph.of(np.arange(clients) / max(1, clients - 1), _linear)

    def contradiction(self) -> str:
        """Return one line about clusters where there are none."""
        if self.by == "clients" and (self.clusters != 2 or self.cluster_sizes):
            return (
                "task.change.by=clients has no clusters; leave task.change.clusters and cluster_sizes at "
                "their "
                "defaults"
            )
        return ""

    def levels(
        self, owners: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64], float, int]]:
        """Yield number, examples, and place from 0 to 1 of each group that changes alike, and their count."""
        n = int(owners.max()) + 1
        group_of = np.asarray(super().clusters_of(n) if self.by == "clusters" else range(n))
        count = int(group_of.max()) + 1
        order = np.argsort(group_of[owners], kind="stable")
        ends = np.cumsum(np.bincount(group_of[owners], minlength=count))
        for k, own in enumerate(np.split(order, ends[:-1])):
            yield k, own, k / max(1, count - 1), count


@register.change("rotation")
class RotationChange(GradedChange):
    """Rotated images (clusters of rotations: Ghosh et al., IFCA, NeurIPS 2020)."""

    degrees: float = Field(
        360.0,
        ge=-360,
        le=360,
        description="angle that is divided: group k of K is rotated by k degrees/K",
    )

    def graph_of(self, clients: int, classes: int) -> TrueGraph | None:
        """Return clusters, or 1 less the angle between two clients in half turns."""
        if self.by == "clusters":
            return super().graph_of(clients, classes)
        return TrueGraph.of(np.arange(clients) * self.degrees / clients, _within_half_turn)

    def inputs(self, x: NDArray[Any], owners: NDArray[np.int64], seed: int) -> NDArray[Any]:
        """Return rotated images: bytes [N, H, W, channels], or numbers [N, H, W] or [N, channels, H, W]."""
        from scipy.ndimage import rotate

        if x.ndim not in (3, 4):
            raise ConfigError(
                f"task.change.name=rotation takes images, and an input has the shape "
                f"{list(x.shape[1:])}; use "
                "another change"
            )
        axes = (1, 2) if x.dtype == np.uint8 or x.ndim == 3 else (2, 3)
        changed = x.copy()
        for k, own, _, count in self.levels(owners):
            angle = k * self.degrees / count
            quarters, rest = divmod(angle, 90)
            if not rest and x.shape[axes[0]] == x.shape[axes[1]]:
                changed[own] = np.rot90(x[own], int(quarters), axes)
            else:
                changed[own] = rotate(x[own], angle, axes, reshape=False, order=1, mode="nearest")
        return changed


@register.change("scale")
class ScaleChange(GradedChange):
    """Feature shift: inputs times a factor plus an offset."""

    factor: float = Field(2.0, description="factor of the last group; the first has 1")
    offset: float = Field(
        0.0, description="added in the last group; the first has 0. Of images, in [-1, 1]"
    )

    def inputs(self, x: NDArray[Any], owners: NDArray[np.int64], seed: int) -> NDArray[Any]:
        """Return scaled inputs; images are cut off at black and white."""
        changed = x.copy()
        for _, own, level, _ in self.levels(owners):
            factor, offset = 1 + (self.factor - 1) * level, self.offset * level
            changed[own] = _like(x, _numbers(x[own]) * factor + offset)
        return changed


@register.change("noise")
class NoiseChange(GradedChange):
    """Gaussian noise on the inputs, more from group to group (Li et al., ICDE 2022)."""

    std: float = Field(
        0.5,
        ge=0,
        description="standard deviation in the last group, of inputs as the model takes them; the first "
        "has 0",
    )

    def inputs(self, x: NDArray[Any], owners: NDArray[np.int64], seed: int) -> NDArray[Any]:
        """Return noisy inputs."""
        changed = x.copy()
        for k, own, level, _ in self.levels(owners):
            key = seeds.key(seed, "change noise", k)
            noise = seeds.normals(key, x[own].size).numpy().reshape(x[own].shape)
            changed[own] = _like(x, _numbers(x[own]) + self.std * level * noise)
        return changed


def _within_half_turn(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    apart = np.abs(one - other) % 360.0
    return np.asarray(1.0 - np.minimum(apart, 360.0 - apart) / 180.0)


def _linear(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(1.0 - np.abs(one - other))


def _numbers(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return inputs as the model takes them: bytes of images in [-1, 1]."""
    return x / 127.5 - 1.0 if x.dtype == np.uint8 else x.astype(np.float64)


def _like(x: NDArray[Any], numbers: NDArray[np.float64]) -> NDArray[Any]:
    """Return such numbers as `x` has them."""
    if x.dtype == np.uint8:
        return np.rint((np.clip(numbers, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return numbers.astype(x.dtype)
