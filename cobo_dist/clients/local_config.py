"""Config sections of what clients do in a round: local work and participation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cobo_dist.errors import ConfigError
from cobo_dist.settings import Section, Text


class ParticipationConfig(Section):
    """Which clients take part in a round; the others keep their models."""

    fraction: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the clients that take part in a round, drawn anew for each, at least one",
    )
    count: int = Field(
        0, ge=0, description="number of clients that take part, in place of participation.fraction"
    )
    trace: Text = Field(
        "",
        description="rounds in which clients are available, as CSV with the header client,from,to, or as a "
        "YAML or JSON list of groups with these keys: the first and the last round of a span, from 1. Others "
        "do not take part; empty: all are available",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability that a client that was drawn fails in a round before it sends: its work of "
        "the round is lost. One client never fails",
    )

    def contradiction(self) -> str:
        """Return why no client can be drawn."""
        if not self.fraction:
            return (
                "participation.fraction=0 lets no client take part; raise it, or set "
                "participation.count=1 for one client a round"
            )
        if self.count and self.fraction < 1:
            return (
                f"participation.count={self.count} and participation.fraction={self.fraction:g} both say "
                "how many clients take part; drop one of them"
            )
        return ""

    def refuse_unfit(self, clients: int) -> None:
        """Check that there are as many clients as are to take part.

        Raises:
            ConfigError: there are fewer.
        """
        if self.count > clients:
            raise ConfigError(
                f"participation.count={self.count} is more than the {clients} clients; set at most "
                f"{clients}, or drop it so that all take part"
            )

    def of(self, clients: int) -> int:
        """Return how many of so many clients take part in a round."""
        return min(clients, self.count) or max(1, round(self.fraction * clients))


class LocalWorkConfig(Section):
    """What a client computes on its own data in one round."""

    steps: int = Field(
        1, ge=1, le=1_000_000, description="local steps of a client in a round (paper: 1)"
    )
    epochs: int = Field(
        0,
        ge=0,
        le=100_000,
        description="passes over a client's own examples in a round, in place of local.steps: clients "
        "with more examples take more steps; 0: local.steps counts",
    )
    drop_last: bool = Field(
        False,
        description="local.epochs: leave out the incomplete batch at the end of an epoch; by default it "
        "is a smaller batch",
    )
    clip_norm: float = Field(
        0.0,
        ge=0,
        description="largest norm of a client's gradient in a local step: longer ones are scaled down to "
        "it; 0: none is",
    )

    @property
    def several_steps(self) -> bool:
        """Whether a client may take more than one step in a round."""
        return self.steps > 1 or self.epochs > 0

    def steps_of(self, sizes_n: Sequence[int], batch_size: int) -> list[int]:
        """Return the local steps a round of clients with `sizes_n` examples, in batches of `batch_size`."""
        if not self.epochs:
            return [self.steps] * len(sizes_n)
        rest = 0 if self.drop_last else batch_size - 1
        return [self.epochs * ((size + rest) // batch_size) for size in sizes_n]

    @model_serializer(mode="wrap")
    def _without_steps(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `steps` where epochs count, so that a written config can be read again."""
        written: dict[str, Any] = write(self)
        return {key: value for key, value in written.items() if key != "steps" or not self.epochs}

    def contradiction(self) -> str:
        """Return which keys exclude one another."""
        if "steps" in self.model_fields_set and self.epochs:
            return (
                f"local.steps={self.steps} and local.epochs={self.epochs} both say how much a client "
                "does in a round; drop one of them"
            )
        if self.drop_last and not self.epochs:
            return (
                "local.drop_last=true means nothing to local.steps, whose batches are all complete; "
                "drop it or set local.epochs=1"
            )
        return ""

    def batch_of_one(
        self, sizes_n: Sequence[int], batch_size: int, accumulation: int
    ) -> int | None:
        """Return the first client with `sizes_n` examples [n] whose batches, or parts, may have one example.

        A batch has `batch_size * accumulation` examples, in parts of `batch_size`; without epochs it is
        always complete.
        """
        whole = batch_size * accumulation
        for client, size in enumerate(sizes_n):
            rest = size % whole if self.epochs and not self.drop_last else 0
            batches = [whole, rest] if size >= whole or not self.epochs else [rest]
            for batch in filter(None, batches):
                part = -(-batch // accumulation)  # as torch.chunk divides
                if 1 in (part, batch % part or part):
                    return client
        return None

    def whole_batches_help(
        self, sizes_n: Sequence[int], batch_size: int, accumulation: int
    ) -> bool:
        """Return whether `drop_last` leaves every client batches, and none of one example."""
        whole = self.model_copy(update={"epochs": self.epochs or 1, "drop_last": True})
        return (
            min(sizes_n) >= batch_size
            and whole.batch_of_one(sizes_n, batch_size, accumulation) is None
        )

    def refuse_unfit(self, sizes_n: Sequence[int], batch_size: int) -> None:
        """Check that every client has a batch in an epoch.

        Raises:
            ConfigError: a client has too few of the `sizes_n` examples [n].
        """
        client = int(np.argmin(sizes_n))
        size = sizes_n[client]
        if self.epochs and self.drop_last and size < batch_size:
            raise ConfigError(
                f"local.drop_last=true leaves client {client} without a batch: it has {size} training "
                f"examples, and a batch has {batch_size}; drop it or lower data.batch_size"
            )
        if self.epochs and not size:
            raise ConfigError(
                f"local.epochs={self.epochs}: client {client} has no training examples; set local.steps"
            )
