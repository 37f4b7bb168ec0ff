"""What `classification` and `regression` share: any source, any partition, any change for each client.

`task.source` says where the examples are from, `task.partition` which client has which, and `task.change` how
a client sees them. Each is registered by name, and a plug-in can add more.

Shapes: N examples, those of the source's test set last; n clients, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializeAsAny

# Each registers its own.
import cobo_dist.tasks.image_folder
import cobo_dist.tasks.input_changes
import cobo_dist.tasks.label_partitions
import cobo_dist.tasks.library_sources
import cobo_dist.tasks.pfllib_partitions
import cobo_dist.tasks.rdatasets
import cobo_dist.tasks.tables
import cobo_dist.tasks.text_source  # noqa: F401
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.registry import Variant
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.changes import ChangeSection
from cobo_dist.tasks.columns import Columns
from cobo_dist.tasks.examples import ClientExamples, Examples
from cobo_dist.tasks.partitions import PartitionSection
from cobo_dist.tasks.scaling import as_they_are, standardized
from cobo_dist.tasks.shares import Shares, shares_of, together
from cobo_dist.tasks.sources import Labeled, SourceSection
from cobo_dist.tasks.splits import split
from cobo_dist.tasks.supervised import SupervisedConfig

_SOURCE = Variant("source", "sklearn")
_PARTITION = Variant("partition", "iid")
_CHANGE = Variant("change", "none")


@dataclass(frozen=True)
class Labels:
    """The labels by which partitions go."""

    numbers: NDArray[np.int64]  # [N], 0 .. C - 1
    names: Sequence[str]  # [C]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Targets:
    """What models learn, as in `Examples`."""

    values: Tensor
    labels_of: Tensor | None = None
    scale: Sequence[float] = ()
    offset: Sequence[float] = ()


class PartitionedConfig(SupervisedConfig):
    """A source of examples, a partition over clients, a change for each client."""

    source: Annotated[SerializeAsAny[SourceSection], _SOURCE] = _SOURCE.field(
        "where the examples are from"
    )
    partition: Annotated[SerializeAsAny[PartitionSection], _PARTITION] = _PARTITION.field(
        "which client has which examples"
    )
    change: Annotated[SerializeAsAny[ChangeSection], _CHANGE] = _CHANGE.field(
        "how a client sees its examples"
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of a client's examples kept for validation"
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of a client's examples kept for test, where the source has no test set",
    )
    merge_test: bool = Field(
        False,
        description="put the source's test set behind its training examples, so that clients split both anew",
    )
    standardize: bool = Field(
        True,
        description="bring each input that is no image or text to mean 0 and standard deviation 1 over all "
        "training examples",
    )

    def contradiction(self) -> str:
        """Return one line about keys that do not go together."""
        parts = (self.source, self.partition, self.change)
        return next(filter(None, (one.contradiction() for one in parts)), "")

    def fetch(self, data: DataConfig) -> Iterator[str]:
        """Fetch what the source lacks."""
        yield from self.source.fetch()

    def labels(self, found: Labeled) -> Labels:
        """Return the labels of all examples.

        Raises:
            ConfigError: the source's targets are of another kind.
        """
        raise TypeError(f"task.name={self.name} has no method labels(found)")

    def targets(
        self,
        found: Labeled,
        labels: Labels,
        clients: int,
        train: Sequence[NDArray[np.int64]],
        seed: int,
        dtype: torch.dtype,
    ) -> Targets:
        """Return the targets of all examples; `train` are the training examples of each client."""
        raise TypeError(f"task.name={self.name} has no method targets(...)")

    def load(self, data: DataConfig, seed: int, dtype: torch.dtype) -> ClientExamples:
        """Read, partition, split and change the examples."""
        found = self.source.read()
        if self.merge_test:
            found = self._merged(found)
        labels = self.labels(found)
        classes = len(labels.names)

        def assign(partition: PartitionSection) -> Shares:
            return shares_of(partition, found, labels.numbers, classes, seed, self.test_fraction)

        fractions = {"test": self.test_fraction}
        if self.validation_fraction:
            fractions["validation"] = self.validation_fraction
        shares, splits = split(found, self.partition, assign, fractions, seed)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                x, scale, offset = self._scaled(found, splits["train"], numpy_type(dtype))
                targets = self.targets(found, labels, shares.clients, splits["train"], seed, dtype)
        except OverflowError as error:
            raise ConfigError(f"{found.source}: {error}") from None
        examples = Examples(
            torch.from_numpy(self.change.inputs(x, shares.owners, seed)),
            targets.values,
            targets.labels_of,
            dtype,
            data.channels_last,
            scale,
            offset,
            targets.scale,
            targets.offset,
            found.text,
        )
        notices = found.notices + labels.notices
        if found.client is not None and self.partition.name != "by_column":
            notices += (
                f"{found.source}: the column of clients is not used with task.partition.name="
                f"{self.partition.name}",
            )
        return ClientExamples(
            examples,
            {name: [torch.from_numpy(own) for own in those] for name, those in splits.items()},
            together(
                self.partition.clusters_among(shares.clients, classes),
                self.change.clusters_of(shares.clients),
            ),
            graph=self._graph(shares.clients, classes),
            names=shares.names,
            notices=notices,
            label_names=labels.names,
            labels=torch.from_numpy(labels.numbers),
        )

    def _merged(self, found: Labeled) -> Labeled:
        """Return the examples with those of the test set as further training examples."""
        if not found.test:
            raise ConfigError(f"{found.source} has no test set for task.merge_test=true; drop it")
        client = found.client
        if client is not None and len(client) < len(found.x):
            if self.partition.name == "by_column":
                raise ConfigError(
                    f"{found.source} names no clients of test examples, which task.merge_test=true needs "
                    "with task.partition.name=by_column; add them, or drop task.merge_test"
                )
            client = None
        return replace(found, test=0, client=client)

    def _graph(self, clients: int, classes: int) -> TrueGraph | None:
        """Return how alike clients are by partition and change; without the former, by a change alone."""
        of_partition = self.partition.graph_of(clients, classes)
        of_change = self.change.graph_of(clients, classes)
        if of_partition is None or of_change is None:
            return of_change
        return of_partition & of_change

    def _scaled(
        self, found: Labeled, train: Sequence[NDArray[np.int64]], dtype: np.dtype[Any]
    ) -> tuple[NDArray[Any], float | list[float], float | list[float]]:
        """Return the inputs, standardized if that is wanted, and scale and offset of each feature."""
        x = found.x
        if not isinstance(x, Columns) and (x.dtype == np.uint8 or found.text is not None):
            return x, 1.0, 0.0
        if not self.standardize:
            return as_they_are(x, dtype), 1.0, 0.0
        return standardized(x, train, dtype)


def numpy_type(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the type of the same name."""
    return np.dtype(str(dtype).partition(".")[2])
