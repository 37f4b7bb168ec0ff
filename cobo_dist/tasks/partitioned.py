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
from cobo_dist.tasks.drifting import Concepts, Splits
from cobo_dist.tasks.examples import ClientExamples, Examples
from cobo_dist.tasks.partitions import PartitionSection
from cobo_dist.tasks.scaling import as_they_are, standardized
from cobo_dist.tasks.sections import DriftingSection
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


class PartitionedConfig(DriftingSection, SupervisedConfig):
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
            graph=self.graph(shares.clients, classes),
            names=shares.names,
            notices=notices,
            label_names=labels.names,
            labels=torch.from_numpy(labels.numbers),
            moving=ChangedConcepts(self, x, shares, classes, seed),
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

    def graph(
        self, clients: int, classes: int, donors: Sequence[int] | None = None
    ) -> TrueGraph | None:
        """Return how alike clients are by partition and change; without the former, by a change alone.

        `donors`: whose change each client has, [n]; None: its own.
        """
        of_partition = self.partition.graph_of(clients, classes)
        of_change = self.change.graph_of(clients, classes)
        if of_change is not None and donors is not None:
            of_change = of_change.reordered(donors)
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


class ChangedConcepts(Concepts):
    """Clients that move see their own examples with the change of another cluster of `task.change`."""

    def __init__(
        self,
        config: PartitionedConfig,
        x: NDArray[Any],
        shares: Shares,
        classes: int,
        seed: int,
    ) -> None:
        """Keep the inputs as they are before the change."""
        change, n = config.change, shares.clients
        clusters = change.clusters_of(n)
        several = clusters is not None and len(set(clusters)) > 1
        super().__init__(
            clusters if several else None,
            f"task.change.name={change.name} makes no clusters here; set task.change.name=labels, or another "
            "change with task.change.clusters of 2 or more",
        )
        self.config, self.x, self.shares, self.classes, self.seed = config, x, shares, classes, seed

    def truth(self, donors: Sequence[int]) -> tuple[Sequence[int] | None, TrueGraph | None]:
        """Return what partition and change say together: a partition's clusters stay."""
        config, n = self.config, self.shares.clients
        found, _ = super().truth(donors)
        clusters = together(config.partition.clusters_among(n, self.classes), found)
        return clusters, config.graph(n, self.classes, donors)

    def moved(
        self, found: ClientExamples, moves: Sequence[tuple[int, int]]
    ) -> tuple[ClientExamples, list[Splits]]:
        """Append the examples of clients that move as they then see them, unless only labels change."""
        if type(self.config.change).inputs is ChangeSection.inputs:
            return super().moved(found, moves)
        at, own, owners, splits = len(self.x), [], [self.shares.owners], list[Splits]()
        for client, donor in moves:
            placed = dict[str, Tensor]()
            for name, indices_of in found.splits.items():
                own.append(indices_of[client].numpy())
                owners.append(np.full(len(own[-1]), donor))
                placed[name] = torch.arange(at, at + len(own[-1]))
                at += len(own[-1])
            splits.append(placed)
        again = np.concatenate(own)
        x = np.concatenate([self.x, self.x[again]])
        more = self.config.change.inputs(x, np.concatenate(owners), self.seed)[len(self.x) :]
        examples, indices = found.examples, torch.from_numpy(again)
        inputs = torch.cat([examples.inputs, torch.from_numpy(more)])
        targets = torch.cat([examples.targets, examples.targets[indices]])
        assert found.labels is not None, "a source has labels"
        return replace(
            found,
            examples=replace(examples, inputs=inputs, targets=targets),
            labels=torch.cat([found.labels, found.labels[indices]]),
        ), splits


def numpy_type(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the type of the same name."""
    return np.dtype(str(dtype).partition(".")[2])
