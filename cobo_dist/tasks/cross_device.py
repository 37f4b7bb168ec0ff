"""Task `cross_device`: clusters that see different classes.

The paper's 80 clients: 10 clusters of 6, 6, 7, 7, 8, 8, 9, 9, 10, 10; cluster k has ten of the 100 classes of
CIFAR-100, no two clusters share one, and a cluster's images are split at random among its clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds
from cobo_dist.registry import register
from cobo_dist.settings import as_tuple
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.drifting import Concepts, Splits
from cobo_dist.tasks.examples import ClientExamples, split_evenly
from cobo_dist.tasks.images import ImagesConfig, ImageSet, load_images
from cobo_dist.tasks.sections import DriftingSection

Sizes = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple), Field(min_length=1)
]


@register.task("cross_device")
class CrossDeviceConfig(DriftingSection, ImagesConfig):
    """CIFAR-100 in clusters with disjoint classes."""

    title: ClassVar[str] = "Cross-device"
    place: ClassVar[int] = 2

    name: Literal["cross_device"] = "cross_device"
    cluster_sizes: Sizes = Field(
        (6, 6, 7, 7, 8, 8, 9, 9, 10, 10), description="clients in each cluster"
    )
    data_fraction: float = Field(
        1.0, gt=0, le=1, description="share of each cluster's training images in use"
    )
    validation_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of a cluster's training images kept for validation, common to its clients",
    )
    labels: Literal["kept", "modulo"] = Field(
        "kept",
        description="a client's labels: 0-99 as in the data, or modulo the classes of a cluster (the "
        "authors' code); the classifier has all classes' outputs either way",
    )

    def load(self, data: DataConfig, seed: int, dtype: torch.dtype) -> ClientExamples:
        """Read the images and split them. Cluster k of K has classes k C/K to (k + 1) C/K - 1 of C."""
        images = load_images(data.file, data.root, "fine")
        sizes = self.cluster_sizes
        if images.classes % len(sizes):
            raise ConfigError(
                f"{images.classes} classes ({images.source}) do not divide among "
                f"{len(sizes)} clusters; give task.cluster_sizes as many entries as a divisor of "
                f"{images.classes}"
            )
        each = images.classes // len(sizes)
        labels = torch.arange(images.classes)
        if self.labels == "modulo":
            labels = labels % each
        clusters = [k for k, size in enumerate(sizes) for _ in range(size)]
        examples = images.examples(labels.expand(len(clusters), -1), data, dtype)
        counts = (torch.from_numpy(images.y_train) // each).bincount(minlength=len(sizes))
        pools = counts[clusters].tolist()
        splits = split(self, images, each, seed)
        moving = OtherClasses(clusters, seed)
        return ClientExamples(
            examples, splits, clusters, pools, notices=images.notices, moving=moving
        )


class OtherClasses(Concepts):
    """Clients that move have images of the new cluster's classes: as many for training as before."""

    def __init__(self, clusters: Sequence[int], seed: int) -> None:
        super().__init__(clusters)
        self.members, self.seed = np.asarray(clusters), seed

    def moved(
        self, found: ClientExamples, moves: Sequence[tuple[int, int]]
    ) -> tuple[ClientExamples, list[Splits]]:
        """Draw a client's training images from all of its new cluster; the others are the cluster's."""
        train, splits = found.splits["train"], list[Splits]()
        for client, donor in moves:
            cluster = int(self.members[donor])
            pool = torch.cat([train[i] for i in np.flatnonzero(self.members == cluster).tolist()])
            key = seeds.key(self.seed, "cross_device drift", client, cluster)
            order = seeds.permutation(key, len(pool))
            drawn = order[torch.arange(len(train[client])) % len(pool)]
            own = {name: found.splits[name][donor] for name in ("validation", "test")}
            splits.append({"train": pool[drawn], **own})
        return found, splits


def split(
    config: CrossDeviceConfig, images: ImageSet, each: int, seed: int
) -> dict[str, list[Tensor]]:
    """Return each client's image indices: training images come first, test images after them."""
    count = len(images.x_train)
    cluster_of = torch.from_numpy(images.y_train) // each
    test_cluster_of = torch.from_numpy(images.y_test) // each
    splits: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for cluster, size in enumerate(config.cluster_sizes):
        own = (cluster_of == cluster).nonzero()[:, 0]
        test = (test_cluster_of == cluster).nonzero()[:, 0] + count
        held_out = int(config.validation_fraction * len(own))
        used = int(config.data_fraction * (len(own) - held_out))
        if used < size or not len(test):
            raise ConfigError(
                f"cluster {cluster} has {len(own)} training and {len(test)} test images "
                f"({images.source}); less {held_out} for validation, at task.data_fraction="
                f"{config.data_fraction:g}, that leaves {used} for its {size} clients: each needs "
                "one of either; lower task.cluster_sizes or raise task.data_fraction"
            )
        shuffled = own[seeds.permutation(seeds.key(seed, "cross_device images", cluster), len(own))]
        splits["train"] += split_evenly(shuffled[held_out : held_out + used], size)
        splits["validation"] += [shuffled[:held_out]] * size
        splits["test"] += [test] * size
    return splits
