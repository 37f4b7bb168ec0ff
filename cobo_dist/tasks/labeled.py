"""Supervised tasks whose targets are labels: what every classification has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.tasks.base import DataConfig, Task
from cobo_dist.tasks.functions import LossName, MetricNames
from cobo_dist.tasks.sections import ModelSection
from cobo_dist.tasks.supervised import Supervised, SupervisedConfig


class ClassificationConfig(SupervisedConfig):
    """Labeled examples that are split over clients in clusters."""

    loss: LossName = Field("cross_entropy", description="what is minimized: a registered loss")
    metrics: MetricNames = Field(
        ("accuracy",), description="registered metrics, which evaluations report beside the loss"
    )

    def build(self, model: ModelSection, data: DataConfig, seed: int, dtype: torch.dtype) -> Task:
        """Return the task over the loaded examples."""
        return Classification(self, model, data, seed, dtype)

    def rebuild(
        self,
        model: ModelSection,
        facts: Mapping[str, Any],
        client: int,
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> nn.Module:
        """Return the client's network as a `Classifier`, which predicts labels of the data."""
        from cobo_dist.tasks.classifier import Classifier

        return Classifier.rebuild(model, facts, client, state, dtype)


class Classification(Supervised):
    """Cross-entropy and accuracy of every client's classifier of its own examples."""

    def __init__(
        self,
        config: ClassificationConfig,
        model: ModelSection,
        data: DataConfig,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        """Load the examples; see `Supervised`."""
        super().__init__(config, model, data, seed, dtype)
        assert self.examples.labels_of is not None, "classes have labels"
        self.maps = self.examples.labels_of  # which stays on the host

    def labels_of(self, client: int, indices: Tensor) -> Tensor:
        """Return the client's own labels, int64."""
        return self.examples.targets_of(self.current.donors[client], indices)

    def model_facts(self) -> dict[str, Any]:
        """Return shape and scale of inputs, and each client's label map."""
        maps, map_of = torch.unique(self._own_labels(), dim=0, return_inverse=True)
        return {
            **super().model_facts(),
            "classes": self.examples.outputs,
            "label_names": list(self.label_names),
            "label_maps": maps.tolist(),
            "label_map_of": map_of.tolist(),
        }

    def _own_labels(self) -> Tensor:
        """Return `labels_of` [n, classes], where labels share an output without those of no example: -1."""
        maps = self.maps[self.current.donors]
        ordered = maps.sort(dim=1).values
        for client in (ordered[:, 1:] == ordered[:, :-1]).any(dim=1).nonzero()[:, 0].tolist():
            own = torch.cat([self.current.of_client(client, split) for split in self.split_of])
            lacking = self.labels[own].bincount(minlength=maps.shape[1]) == 0
            maps[client, lacking] = -1
        return maps
