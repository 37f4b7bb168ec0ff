"""Fine-tuned FedAvg: FedAvg first, then local training of every client from the common model."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from cobo_dist.algorithms.base import Clients, Exchange, RoundResult, RunContext
from cobo_dist.algorithms.fedavg import FedAvg, WeightedAveragingConfig
from cobo_dist.algorithms.local import local_step
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class FinetuningConfig(WeightedAveragingConfig):
    """Averaging, then every client alone from its model."""

    fedavg_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the rounds that are FedAvg; the rest are local steps (the paper does "
        "not say how many)",
    )

    @property
    def needs_rounds(self) -> tuple[str, ...]:
        """The share of the rounds that are FedAvg."""
        share = f"algorithm.fedavg_share={self.fedavg_share:g}"
        return (f"{share}: clients train alone after a share of them",)

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """One round of FedAvg and one of local steps."""
        together = min(rounds, math.ceil(self.fedavg_share * rounds))
        parts = [(0, together), (rounds - 1, rounds - together)]
        return [(t, count) for t, count in parts if count]


class FinetunedFedAvgConfig(FinetuningConfig):
    """FedAvg, then every client alone from its model."""

    name: Literal["finetuned_fedavg"] = "finetuned_fedavg"


@register.algorithm("finetuned_fedavg")
class FinetunedFedAvg(FedAvg):
    """FedAvg for the first `fedavg_share` of the rounds, then Local. 1 is FedAvg, 0 is Local.

    W is all ones, then the identity.
    """

    Config: ClassVar[type[FinetuningConfig]] = FinetunedFedAvgConfig
    title, color, marker, place = "Fine-tuned FedAvg", "#0072b2", "^", 3

    def __init__(
        self,
        config: FinetuningConfig,
        clients: Clients,
        exchange: Exchange,
        context: RunContext,
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.together = config.fedavg_share * context.rounds
        self.alone = Weights(clients.ids, range(context.clients), symmetric=True)
        if not self.together:
            self.weights = self.alone

    def round(self, t: int) -> RoundResult:
        """Take a FedAvg round or a local step."""
        if t < self.together:
            return super().round(t)
        parted = 0 < t < self.together + 1  # the first local round after rounds of FedAvg
        self.weights = self.alone
        return RoundResult(local_step(self.clients, t), weights_replaced=parted)
