"""Task `digits`: handwritten digits, in clusters that see them under different labels.

A small version of the paper's cross-silo experiment that needs no network: scikit-learn's 1,797 digits
(8 x 8 pixels). Clusters differ by a random permutation of the ten labels, applied to training and test.
All clients have the same test images, in their cluster's labels. The other images are split over the clients,
so no training example belongs to two clients. For more clients than there are images,
`task.images_per_client` lets every client draw its own from all images but the test images.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.maths import seeds
from cobo_dist.registry import register
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.examples import ClientExamples, Examples
from cobo_dist.tasks.labeled import ClassificationConfig
from cobo_dist.tasks.sections import DriftingSection
from cobo_dist.tasks.sources import handwritten_digits

CLASSES = 10
SCALE = 1.0 / 16.0  # pixels are 0 .. 16


@register.task("digits")
class DigitsConfig(DriftingSection, ClassificationConfig):
    """Handwritten digits in clusters with permuted labels."""

    title: ClassVar[str] = "Digits"
    place: ClassVar[int] = 4

    name: Literal["digits"] = "digits"
    clusters: int = Field(4, ge=1, description="clusters, each with its own label permutation")
    clients_per_cluster: int = Field(2, ge=1, description="clients in each cluster")
    test_size: int = Field(500, ge=1, description="images in the common test pool")
    images_per_client: int = Field(
        0,
        ge=0,
        description="images that each client draws for itself, where clients may share images; 0: "
        "images are split, and none belongs to two clients",
    )
    validation_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of a client's images kept for validation"
    )

    def load(self, data: DataConfig, seed: int, dtype: torch.dtype) -> ClientExamples:
        """Load and split; images become numbers in [0, 1]."""
        pixels, labels = handwritten_digits()
        splits = _split(self, len(labels), seed)  # refuses too many clients before any is made
        clusters = [k for k in range(self.clusters) for _ in range(self.clients_per_cluster)]
        examples = Examples(
            torch.from_numpy(pixels).to(dtype) * SCALE,
            torch.from_numpy(labels).long(),
            torch.stack([_labels(seed, cluster) for cluster in clusters]),
            dtype,
            scale=SCALE,
        )
        return ClientExamples(examples, splits, clusters)


def _labels(seed: int, cluster: int) -> torch.Tensor:
    return seeds.permutation(seeds.key(seed, "digits labels", cluster), CLASSES)


def _split(config: DigitsConfig, images: int, seed: int) -> dict[str, list[torch.Tensor]]:
    clients = config.clusters * config.clients_per_cluster
    left = max(0, images - config.test_size)
    each = config.images_per_client or left // clients
    held_out = int(each * config.validation_fraction)
    if each > left:
        raise ConfigError(
            f"{images} digits less task.test_size={config.test_size} leave {left} for a client to draw "
            f"task.images_per_client={each} from; lower one of them"
        )
    if each - held_out < 1:
        raise ConfigError(
            f"{images} digits less task.test_size={config.test_size} leave {each} for each of "
            f"{clients} clients; lower task.test_size, task.clusters or task.clients_per_cluster, or let "
            "clients share images: task.images_per_client=20"
        )
    order = seeds.permutation(seeds.key(seed, "digits split"), images)
    test, shares = order[: config.test_size], order[config.test_size :]
    if config.images_per_client:
        draws = (
            seeds.permutation(seeds.key(seed, "digits of a client", i), left)[:each]
            for i in range(clients)
        )
        own = [shares[numbers] for numbers in draws]
    else:
        own = [shares[i * each : (i + 1) * each] for i in range(clients)]
    return {
        "train": [numbers[held_out:] for numbers in own],
        "validation": [numbers[:held_out] for numbers in own],
        "test": [test] * clients,
    }
