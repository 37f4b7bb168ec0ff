"""Classification on examples that lie once on the device; a client is a list of their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cobo_dist.clients.batches import BatchIndices
from cobo_dist.clients.engines import Batch


@dataclass(frozen=True)
class Examples:
    """N labelled examples and how n clients see them.

    `labels_of` [n, classes] maps the label in the data to the client's own label: clusters that
    permute labels share images.
    """

    inputs: Tensor  # [N, ...]
    targets: Tensor  # int64 [N]
    labels_of: Tensor  # int64 [n, classes]

    def to(self, device: torch.device) -> Examples:
        """Return the same on `device`."""
        return Examples(self.inputs.to(device), self.targets.to(device), self.labels_of.to(device))

    def fingerprint(self, splits: Sequence[Sequence[Tensor]]) -> str:
        """Return a digest of the examples, the labels and every client's splits."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets, self.labels_of, *(i for s in splits for i in s)):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class ExampleBatches:
    """Training batches of some clients, gathered on the device by example number."""

    def __init__(
        self,
        examples: Examples,
        train: Sequence[Tensor],
        clients: Sequence[int],
        seed: int,
        batch_size: int,
    ) -> None:
        self.examples = examples
        device = examples.inputs.device
        self.clients = torch.tensor(list(clients), device=device)
        own = [train[client].to(device) for client in clients]
        self.streams = {
            stream: BatchIndices(seed, f"batches {stream}", clients, own, batch_size)
            for stream in ("local", "midpoint")
        }

    def batch(self, t: int, stream: str, rows: Tensor | None = None) -> Batch:
        """Return inputs [m, B, ...] and targets [m, B] of round t."""
        numbers_mb, clients_m = self.streams[stream].batch(t), self.clients
        if rows is not None:
            numbers_mb, clients_m = numbers_mb[rows], clients_m[rows]
        targets = self.examples.labels_of[clients_m[:, None], self.examples.targets[numbers_mb]]
        return self.examples.inputs[numbers_mb], targets


class Classification:
    """Cross-entropy and accuracy of a client's classifier."""

    metrics: tuple[str, ...] = ("loss", "accuracy")
    diagnoses = False

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch (inputs, targets)."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets)

    def score(self, model: nn.Module, *batch: Tensor) -> dict[str, Tensor]:
        """Return the sums of cross-entropy and of right answers over a batch (inputs, targets)."""
        inputs, targets = batch
        logits = model(inputs)
        return {
            "loss": F.cross_entropy(logits, targets, reduction="sum"),
            "accuracy": (logits.argmax(dim=1) == targets).sum(),
        }


def evaluation_batches(
    examples: Examples, client: int, numbers: Tensor, batch_size: int
) -> Iterable[tuple[int, Batch]]:
    """Return (count, (inputs, targets)) over one client's examples `numbers`, in order."""
    for chunk in torch.split(numbers.to(examples.inputs.device), batch_size):
        targets = examples.labels_of[client][examples.targets[chunk]]
        yield len(chunk), (examples.inputs[chunk], targets)
