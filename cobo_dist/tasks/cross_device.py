"""Task `cross_device`: clusters that see different classes.

The paper's 80 clients: 10 clusters of 6, 6, 7, 7, 8, 8, 9, 9, 10, 10; cluster k has ten of the 100 classes of
CIFAR-100, no two clusters share one, and a cluster's images are split at random among its clients.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.settings import as_tuple
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.images import ImageSet, load_images
from cobo_dist.tasks.models import ClassifierConfig
from cobo_dist.tasks.supervised import Classification, Examples, OrderedConfig, share_out

Sizes = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple), Field(min_length=1)
]


class CrossDeviceConfig(OrderedConfig):
    """CIFAR-100 in clusters with disjoint classes."""

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


class CrossDevice(Classification):
    """The images of all clients. Cluster k of K has classes k C/K to (k + 1) C/K - 1 of C."""

    name = "cross_device"

    def __init__(
        self,
        config: CrossDeviceConfig,
        model: ClassifierConfig,
        data: DataConfig,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        """Read and split.

        Raises:
            ConfigError: missing or malformed data, classes that do not divide, too few images.
        """
        self.config = config
        images = load_images(data.file, data.root, "fine")
        sizes = config.cluster_sizes
        if images.classes % len(sizes):
            raise ConfigError(
                f"{images.classes} classes ({images.source}) do not divide among "
                f"{len(sizes)} clusters; give task.cluster_sizes as many entries as a divisor of "
                f"{images.classes}"
            )
        each = images.classes // len(sizes)
        named = torch.arange(images.classes)
        clusters = [k for k, size in enumerate(sizes) for _ in range(size)]
        examples = Examples(
            torch.from_numpy(images.x_train),
            torch.from_numpy(images.y_train),
            (named % each if config.labels == "modulo" else named).expand(len(clusters), -1),
            dtype,
            data.channels_last,
        ).with_test(torch.from_numpy(images.x_test), torch.from_numpy(images.y_test))
        super().__init__(
            examples, split(config, images, each, seed), clusters, model, data, seed, config
        )


def split(
    config: CrossDeviceConfig, images: ImageSet, each: int, seed: int
) -> dict[str, list[Tensor]]:
    """Return each client's image numbers: training images first, test images after them."""
    count = len(images.x_train)
    homes = torch.from_numpy(images.y_train) // each
    test_homes = torch.from_numpy(images.y_test) // each
    splits: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for cluster, size in enumerate(config.cluster_sizes):
        own = (homes == cluster).nonzero()[:, 0]
        test = (test_homes == cluster).nonzero()[:, 0] + count
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
        splits["train"] += share_out(shuffled[held_out : held_out + used], size)
        splits["validation"] += [shuffled[:held_out]] * size
        splits["test"] += [test] * size
    return splits
