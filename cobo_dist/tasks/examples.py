"""Examples with targets, which the device holds once: a client is a list of their indices. Their batches."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cobo_dist.clients.batches import TRAINING_STREAMS, BatchIndices, number_of
from cobo_dist.clients.engines import Batch
from cobo_dist.clients.graphs import GraphedFunction
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.tasks.augmentation import Augmentation, dropout_keys, dropout_mask
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.drifting import Concepts
from cobo_dist.tasks.text_format import TextFormat

IMAGE_SCALE, IMAGE_OFFSET = 1.0 / 127.5, -1.0
"""Bytes 0 .. 255 of an image become numbers in [-1, 1]: scale * byte + offset."""

Make = Callable[[Tensor, Tensor], Batch]
"""Makes a batch of example numbers [c, B] and the numbers [m, k] of m clients: row, whose labels, keys."""

Splits = Mapping[str, Sequence[Tensor]]
"""For "train", "validation" and "test" the example indices of each client."""


@dataclass(frozen=True)
class Examples:
    """N examples with their targets: labels, and those by which n clients know them, or numbers.

    `inputs` are numbers as the model takes them, token ids of text (int64 [N, length]), or images as bytes
    (uint8 [N, H, W, C]), which become numbers in [-1, 1] only when a batch is made. `labels_of` [n, classes]
    maps the label in the data to the client's own label: clusters that permute labels share images. Without
    it targets are numbers.
    """

    inputs: Tensor
    targets: Tensor  # int64 [N], or numbers [N, outputs] of `dtype`
    labels_of: Tensor | None  # int64 [n, classes]
    dtype: torch.dtype  # of a batch
    channels_last: bool = False  # memory format of a batch of images
    # The data's numbers became `inputs` as scale * number + offset; images as bytes have their own.
    scale: float | Sequence[float] = 1.0  # one number, or one for each feature
    offset: float | Sequence[float] = 0.0
    # Likewise targets that are numbers, one for each output.
    target_scale: Sequence[float] = ()
    target_offset: Sequence[float] = ()
    text: TextFormat | None = None  # how text became token ids

    @property
    def vocabulary(self) -> int:
        """How many token ids there are; 0 where inputs are no text."""
        return self.text.vocabulary if self.text else 0

    @property
    def outputs(self) -> int:
        """How many numbers a model returns for an example: one for each class, or for each target."""
        return (self.targets if self.labels_of is None else self.labels_of).shape[1]

    def targets_of(self, clients: Tensor | int, indices: Tensor) -> Tensor:
        """Return the targets of examples as their clients know them; both arguments are broadcast."""
        if self.labels_of is None:
            return self.targets[indices]
        return self.labels_of[clients, self.targets[indices]]

    def of_clients(self, order: Sequence[int]) -> Examples:
        """Return the same with the clients in another order."""
        return self if self.labels_of is None else replace(self, labels_of=self.labels_of[order])

    @property
    def are_images(self) -> bool:
        """Whether inputs are bytes of images."""
        return self.inputs.dtype == torch.uint8

    @property
    def shape(self) -> torch.Size:
        """Shape of one input as the model takes it."""
        shape = self.inputs.shape[1:]
        return torch.Size((shape[2], shape[0], shape[1])) if self.are_images else shape

    def to(self, device: torch.device) -> Examples:
        """Return the same on `device`."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            targets=self.targets.to(device),
            labels_of=None if self.labels_of is None else self.labels_of.to(device),
        )

    def as_inputs(self, stored: Tensor) -> Tensor:
        """Return stored inputs as the model takes them: images [..., H, W, C] to [..., C, H, W] in [-1, 1].

        Stored images have their channels last, so a batch with channels last needs no copy.
        """
        if not self.are_images:
            return stored
        images = stored.movedim(-1, -3).to(self.dtype).mul_(IMAGE_SCALE).add_(IMAGE_OFFSET)
        return images if self.channels_last else images.contiguous()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the device holds."""
        maps = () if self.labels_of is None else (self.labels_of,)
        return (self.inputs, self.targets, *maps)

    def fingerprint(self, splits: Iterable[Sequence[Tensor]]) -> str:
        """Return a digest of the examples, the targets and every client's splits."""
        digest = hashlib.sha256()
        for tensor in (*self.tensors, *(i for s in splits for i in s)):
            digest.update(tensor.cpu().contiguous().numpy().reshape(-1).view("uint8").data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ClientExamples:
    """Examples split over n clients."""

    examples: Examples
    splits: Splits
    clusters: Sequence[int] | None  # [n], the cluster of each client; None: there are none
    pools: Sequence[int] = ()  # [n], of which validation is a fraction; empty: each client's own
    names: Sequence[str] = ()  # [n], of the clients; empty if they have none
    notices: tuple[str, ...] = ()  # what a user should know of the data, a line each
    graph: TrueGraph | None = None  # how alike clients are; None: it cannot be said
    label_names: Sequence[str] = ()  # [classes] in the source; empty where clients share examples
    labels: Tensor | None = None  # int64 [N], by which partitions went where targets are numbers
    moving: Concepts | None = (
        None  # what clients have that move; None: the labels of another cluster
    )

    @property
    def concepts(self) -> Concepts:
        """What clients have when they move to another cluster (`task.drift`)."""
        return self.moving or Concepts(self.clusters, "this task knows none")


class ExampleBatches:
    """Training batches of some clients, gathered on the device by example index."""

    def __init__(
        self,
        examples: Examples,
        train: Sequence[Tensor],
        clients: Sequence[int],
        seed: int,
        data: DataConfig,
        dropout: tuple[float, int] = (0.0, 0),
        streams: Sequence[str] = TRAINING_STREAMS,
    ) -> None:
        """Read for `clients`; `dropout` is the share and the number of features it may drop."""
        self.examples, self.ids, self.seed, self.dropout = examples, tuple(clients), seed, dropout
        self.batch_size = data.examples_a_round
        self.views = {}
        if data.augment and examples.are_images:
            self.views = {
                stream: Augmentation(seed, stream, clients, examples.inputs) for stream in streams
            }
        self._donors, self._own = self.ids, [train[client] for client in self.ids]
        self.streams = {stream: self._indices(stream) for stream in streams}
        self._make: dict[str, Make] = {stream: partial(self._gather, stream) for stream in streams}

    def use(self, train: Sequence[Tensor], donors: Sequence[int]) -> None:
        """Read these examples [n] from now on, with the labels of these clients [n].

        A client goes on in its own random order.
        """
        self._donors = tuple(donors[client] for client in self.ids)
        before, self._own = self._own, [train[client] for client in self.ids]
        if not all(map(operator.is_, before, self._own)):
            self.streams = {stream: self._indices(stream) for stream in self.streams}

    def _indices(self, stream: str) -> BatchIndices:
        numbers = [own.to(self.examples.inputs.device) for own in self._own]
        return BatchIndices(self.seed, f"batches {stream}", self.ids, numbers, self.batch_size)

    def use_graphs(self) -> None:
        """Make batches by CUDA graphs from now on: a few launches in place of about seventy."""
        self._make = {stream: GraphedFunction(make) for stream, make in self._make.items()}

    def batch(
        self, t: int, stream: str, rows: Tensor | None = None, part: int | None = None
    ) -> Batch:
        """Return inputs [m, B, ...], targets [m, B] and, with dropout, a mask [m, B, features] of batch t.

        With `part`, of that batch of epoch t.
        """
        numbers = self.streams[stream]
        which = list(range(len(self.ids))) if rows is None else rows.tolist()
        if part is None:
            indices_cb, taken = numbers.batch(t), which
        else:
            indices_cb, taken = numbers.part(t, part, which), list(range(len(which)))
        ids = [self.ids[row] for row in which]
        t = number_of(t, part)
        known_as = [self._donors[row] for row in which]
        columns = [torch.tensor(of_each, dtype=torch.int64) for of_each in (taken, known_as)]
        if stream in self.views:
            columns.append(self.views[stream].keys(t, which))
        if self.dropout[0]:
            columns.append(dropout_keys(self.seed, stream, ids, t))
        return self._make[stream](indices_cb, torch.stack(columns, dim=1))

    def _gather(self, stream: str, indices_cb: Tensor, numbers_mk: Tensor) -> Batch:
        """Return the batch of these examples, on the device; `numbers_mk`: see `Make`."""
        examples = self.examples
        rows_m, clients_m, *keys = to_device(numbers_mk, indices_cb.device).unbind(dim=1)
        indices_mb = indices_cb.index_select(0, rows_m)
        targets = examples.targets_of(clients_m[:, None], indices_mb)
        if stream in self.views:
            stored = self.views[stream](indices_mb, keys[0])
        else:
            # index_select takes a third of the time of plain indexing.
            stored = examples.inputs.index_select(0, indices_mb.flatten())
            stored = stored.view(*indices_mb.shape, *stored.shape[1:])
        batch: Batch = (examples.as_inputs(stored), targets)
        share, features = self.dropout
        if not share:
            return batch
        mask = dropout_mask(keys[-1], (indices_mb.shape[1], features), share)
        return (*batch, mask.to(batch[0].dtype))


def split_evenly(indices: Tensor, clients: int) -> list[Tensor]:
    """Cut shuffled example indices into `clients` parts whose sizes differ by at most one.

    >>> [part.tolist() for part in split_evenly(torch.arange(5), 2)]
    [[0, 1, 2], [3, 4]]
    """
    return list(torch.tensor_split(indices, clients))
