"""Task `digits`: handwritten digits, clusters that disagree about the names of the digits.

A small twin of the paper's cross-silo experiment that needs no network: scikit-learn's 1,797 digits
(8 x 8 pixels). Clusters differ by a random permutation of the ten labels, applied to training and test.
The test pool is common (each client answers in its cluster's labels); the rest is shared out to the
clusters, and a cluster's share to its clients, so no training example belongs to two clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from cobo_dist.clients.engines import Batch
from cobo_dist.clients.group import BatchSource
from cobo_dist.errors import Refusal
from cobo_dist.maths import seeds
from cobo_dist.settings import Section

from .base import DataConfig
from .models import ModelConfig, build_model
from .supervised import Classification, ExampleBatches, Examples, evaluation_batches

CLASSES = 10


class DigitsConfig(Section):
    """Handwritten digits in clusters with permuted labels."""

    name: Literal["digits"] = "digits"
    clusters: int = Field(4, ge=1, description="clusters, each with its own label permutation")
    clients_per_cluster: int = Field(2, ge=1, description="clients in each cluster")
    test_size: int = Field(500, ge=1, description="images in the common test pool")
    validation_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of a client's images kept for validation"
    )


class Digits(Classification):
    """The digits of all clients; images as numbers in [0, 1]."""

    name = "digits"

    def __init__(
        self,
        config: DigitsConfig,
        model: ModelConfig,
        data: DataConfig,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        """Load and split.

        Raises:
            Refusal: too few images for so many clients or so large a test pool.
        """
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        self.config, self.model_config, self.data, self.seed = config, model, data, seed
        self.clients = config.clusters * config.clients_per_cluster
        self.train, self.validation, self.test = self._split(len(labels))
        self.clusters: tuple[int, ...] | None = tuple(
            i // config.clients_per_cluster for i in range(self.clients)
        )
        self.examples = Examples(
            torch.from_numpy(pixels).to(dtype) / 16.0,
            torch.from_numpy(labels).long(),
            torch.stack([self._labels(cluster) for cluster in self.clusters]),
        )
        # Without validation images there is nothing to evaluate under that name.
        self.splits: tuple[str, ...] = (
            ("validation", "test") if len(self.validation[0]) else ("test",)
        )

    def _labels(self, cluster: int) -> torch.Tensor:
        return seeds.permutation(seeds.key(self.seed, "digits labels", cluster), CLASSES)

    def _split(self, images: int) -> tuple[list[torch.Tensor], ...]:
        config = self.config
        each = max(0, images - config.test_size) // self.clients
        held_out = int(each * config.validation_fraction)
        if each - held_out < 1:
            raise Refusal(
                f"{images} digits less task.test_size={config.test_size} leave {each} for each of "
                f"{self.clients} clients; lower task.test_size, task.clusters or "
                "task.clients_per_cluster"
            )
        order = seeds.permutation(seeds.key(self.seed, "digits split"), images)
        test, shares = order[: config.test_size], order[config.test_size :]
        own = [shares[i * each : (i + 1) * each] for i in range(self.clients)]
        return (
            [numbers[held_out:] for numbers in own],
            [numbers[:held_out] for numbers in own],
            [test] * self.clients,
        )

    def model(self, variant: int = 0) -> nn.Module:
        """Return x^0, or another start."""
        seed = seeds.key(self.seed, "start variant", variant) if variant else self.seed
        return build_model(self.model_config, self.examples.inputs[0].numel(), CLASSES, seed)

    def training(self, clients: Sequence[int], device: torch.device) -> BatchSource:
        """Return the training batches of these clients."""
        self._move_to(device)
        return ExampleBatches(self.examples, self.train, clients, self.seed, self.data.batch_size)

    def evaluation(
        self, client: int, split: str, device: torch.device
    ) -> Iterable[tuple[int, Batch]]:
        """Return one client's images of `split` ("validation" or "test") in batches."""
        self._move_to(device)
        numbers = {"validation": self.validation, "test": self.test}[split][client]
        return evaluation_batches(self.examples, client, numbers, self.data.eval_batch_size)

    def _move_to(self, device: torch.device) -> None:
        if self.examples.inputs.device != device:
            self.examples = self.examples.to(device)

    def diagnose(self, x_nd: object) -> dict[str, float]:
        """Return nothing further."""
        return {}

    def fingerprint(self) -> str:
        """Return a digest of images, labels and splits."""
        return self.examples.fingerprint([self.train, self.validation, self.test])
