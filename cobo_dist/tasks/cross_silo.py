"""Task `cross_silo`: clusters that see the same images under different labels.

The paper's 8 clients: 4 clusters of 2, CIFAR-100. Every cluster has the whole training set, split at random
among its clients, and permutes the labels by a seed of its own, in training and in test.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds
from cobo_dist.registry import register
from cobo_dist.settings import as_tuple
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.examples import ClientExamples, split_evenly
from cobo_dist.tasks.images import ImagesConfig, ImageSet, load_images
from cobo_dist.tasks.sections import DriftingSection

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(as_tuple)]


@register.task("cross_silo")
class CrossSiloConfig(DriftingSection, ImagesConfig):
    """CIFAR-100 in clusters with permuted labels."""

    title: ClassVar[str] = "Cross-silo"
    place: ClassVar[int] = 1

    name: Literal["cross_silo"] = "cross_silo"
    clusters: int = Field(4, ge=1, description="clusters, each with its own label permutation")
    clients_per_cluster: int = Field(
        2, ge=1, description="clients in each cluster, among whom its images are split"
    )
    data_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the training images in use: the same ones in every cluster (Figure 2a)",
    )
    validation_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the training images kept for validation, common to all clients",
    )
    labels: Literal["fine", "coarse"] = Field(
        "fine", description="the 100 classes, or the 20 superclasses"
    )
    label_map: Literal["permuted", "shifted"] = Field(
        "permuted",
        description="a cluster renames classes by a random permutation (paper), or class c to c + its "
        "number, cyclically (the authors' code)",
    )
    label_seeds: Seeds = Field(
        (),
        description="label_map=permuted: a seed for each cluster's permutation; empty: from data.seed",
    )

    def load(self, data: DataConfig, seed: int, dtype: torch.dtype) -> ClientExamples:
        """Read the images and split them."""
        if self.label_seeds and len(self.label_seeds) != self.clusters:
            raise ConfigError(
                f"task.label_seeds names {len(self.label_seeds)} seeds for task.clusters="
                f"{self.clusters}; give one for each, or none"
            )
        images = load_images(data.file, data.root, self.labels)
        clusters = [k for k in range(self.clusters) for _ in range(self.clients_per_cluster)]
        labels = torch.stack([label_map(self, k, images.classes, seed) for k in clusters])
        examples = images.examples(labels, data, dtype)
        pools = [len(images.x_train)] * len(clusters)
        splits = split(self, images, seed)
        return ClientExamples(examples, splits, clusters, pools, notices=images.notices)


def label_map(config: CrossSiloConfig, cluster: int, classes: int, seed: int) -> Tensor:
    """Return the cluster's label for each class, int64 [classes]."""
    if config.label_map == "shifted":
        return (torch.arange(classes) + cluster) % classes
    own = (
        seeds.key(config.label_seeds[cluster], "label permutation")
        if config.label_seeds
        else seeds.key(seed, "label permutation", cluster)
    )
    return seeds.permutation(own, classes)


def split(config: CrossSiloConfig, images: ImageSet, seed: int) -> dict[str, list[Tensor]]:
    """Return each client's image indices: training images come first, test images after them."""
    count, clients = len(images.x_train), config.clusters * config.clients_per_cluster
    order = seeds.permutation(seeds.key(seed, "cross_silo images"), count)
    held_out = int(config.validation_fraction * count)
    used = int(config.data_fraction * (count - held_out))
    if used < config.clients_per_cluster:
        raise ConfigError(
            f"{count} training images ({images.source}) less {held_out} for validation, at "
            f"task.data_fraction={config.data_fraction:g}, leave {used} for the "
            f"{config.clients_per_cluster} clients of a cluster; raise task.data_fraction or lower "
            "task.clients_per_cluster"
        )
    validation, pool = order[:held_out], order[held_out : held_out + used]
    train = []
    for cluster in range(config.clusters):
        shuffled = seeds.permutation(seeds.key(seed, "cross_silo shares", cluster), used)
        train += split_evenly(pool[shuffled], config.clients_per_cluster)
    test = torch.arange(count, count + len(images.x_test))
    return {"train": train, "validation": [validation] * clients, "test": [test] * clients}
