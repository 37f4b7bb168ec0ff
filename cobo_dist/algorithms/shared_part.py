"""Methods that share a part of the model: FedPer, FedRep, FedBABU, LG-FedAvg and FedBN."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from cobo_dist.algorithms.algorithm import RunSettings
from cobo_dist.algorithms.base import AlgorithmState, Columns, Newcomers, RoundResult
from cobo_dist.algorithms.fedavg import FedAvg, WeightedAveragingConfig, WeightingConfig
from cobo_dist.algorithms.finetuned_fedavg import FinetunedFedAvg, FinetuningConfig
from cobo_dist.algorithms.local import local_step
from cobo_dist.algorithms.named_columns import named_columns
from cobo_dist.algorithms.two_models import common_start
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor
from cobo_dist.registry import register
from cobo_dist.settings import Texts


class HeadConfig(WeightingConfig):
    """Which parameters are the head of a model."""

    head: Texts = Field(
        (),
        description="names or globs of the head's parameters, as [fc, classifier.*]; empty: the model's last "
        "layer",
    )


class FedPerConfig(HeadConfig, WeightedAveragingConfig):
    """A common body, and a head for each client."""

    name: Literal["fedper"] = "fedper"


class FedRepConfig(HeadConfig, WeightedAveragingConfig):
    """A common body, and a head for each client, which is trained first."""

    name: Literal["fedrep"] = "fedrep"
    body_work: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="how many of local.steps, or of local.epochs, come last and train the body; those before "
        "train the head (paper: local.epochs=11, 10 of them for the head)",
    )

    def unsuited(self, settings: RunSettings) -> str:
        """Refuse rounds that leave the head no work."""
        if settings.work > self.body_work:
            return ""
        return (
            f"algorithm.name=fedrep trains the head before the body, and algorithm.body_work="
            f"{self.body_work} of {settings.work_key}={settings.work} leaves the head none; set "
            f"{settings.work_key}={self.body_work + 1} or more"
        )


class FedBabuConfig(HeadConfig, FinetuningConfig):
    """A common body that is trained with a head which stays at its start; then every client alone."""

    name: Literal["fedbabu"] = "fedbabu"
    fedavg_share: float = Field(
        0.9,
        ge=0,
        le=1,
        description="share of the rounds that train and average the body; in the rest clients fine-tune "
        "whole models alone",
    )


class LgFedAvgConfig(HeadConfig):
    """A common head, and a body for each client."""

    name: Literal["lg_fedavg"] = "lg_fedavg"


class FedBnConfig(WeightingConfig):
    """Common models, but for the normalization layers."""

    name: Literal["fedbn"] = "fedbn"
    norms: Texts = Field(
        (),
        description="names or globs of the parameters of normalization layers, which stay with their client; "
        "empty: of layers with running statistics, as BatchNorm's",
    )


class SharedPart(FedAvg):
    """Local work, then phi <- mean_i phi_i over the clients that take part; x_i = (phi_i, h_i), h_i stays.

    Only the columns of phi travel and are counted. Here h is the head, phi the body. W is all ones: on phi.
    """

    newcomers_start = ""
    trains_parts: ClassVar[bool] = False  # whether one part rests while the other trains

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.own, self.shared = self.split()
        if self.trains_parts:
            self.clients.separate(self.own, self.shared)
        averages = getattr(self.config, "buffers", "local") == "averaged"
        self.shared_buffers = self.buffers_of_shared_layers() if averages else None
        self.user_notice = (
            f"{self.own.size:,} of {self.clients.size:,} parameters stay with their client: "
            f"{', '.join(self.own.names[:4])}{', ...' if len(self.own.names) > 4 else ''}"
        )

    def split(self) -> tuple[Columns, Columns]:
        """Return the columns that stay with their client, and those that are shared."""
        names = self.clients.columns("*").names
        last = layer_of(names[-1])
        if not self.config.head and all(layer_of(name) == last for name in names):
            raise ConfigError(
                f"algorithm.name={self.config.name} splits models into body and head, and this model has one "
                f"layer, {last}; choose a task and a model with more, as model.name=mlp"
            )
        return self.columns("head", last)

    def columns(self, key: str, *default: str) -> tuple[Columns, Columns]:
        """Return the columns that a key names, or those named by default; and all others."""
        patterns = getattr(self.config, key) or default
        chosen = named_columns(self.clients, key, patterns)
        return chosen, named_columns(self.clients, key, patterns, others=True)

    def buffers_of_shared_layers(self) -> Columns | None:
        """Return the columns of the statistics that are averaged; None where the model has none."""
        if not self.clients.b_cd.shape[1]:
            return None
        own = {layer_of(name) for name in self.own.names}
        names = self.clients.columns("*", buffers=True).names
        shared = [name for name in names if layer_of(name) not in own]
        return self.clients.columns(*shared, buffers=True) if shared else None

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Give clients that join the shared part."""
        for columns, rows_cd in (
            (self.shared, self.clients.x_cd),
            (self.shared_buffers, self.clients.b_cd),
        ):
            if columns is not None:
                part_ck = columns.take(rows_cd)
                self.give_means(part_ck, t, newcomers)
                columns.put(part_ck, rows_cd)

    def round(self, t: int) -> RoundResult:
        """Work locally, then average the shared part."""
        losses_c = self.train(t)
        self.share(self.shared, self.clients.x_cd, t)
        if self.shared_buffers is not None:
            self.share(self.shared_buffers, self.clients.b_cd, t)
        return RoundResult(losses_c)

    def share(self, columns: Columns, rows_cd: Tensor, t: int) -> None:
        """Average some columns of the rows."""
        part_ck = columns.take(rows_cd)
        self.average(part_ck, t)
        columns.put(part_ck, rows_cd)


@register.algorithm("fedper")
class FedPer(SharedPart):
    """Body and head are trained together, and the body is averaged (Arivazhagan et al., 2019)."""

    Config = FedPerConfig
    title, color, marker, place = "FedPer", "#88ccee", "<", 12


@register.algorithm("fedrep")
class FedRep(SharedPart):
    """The head is trained first, then the body, which is averaged (Collins et al., ICML 2021).

    While one is trained, the other rests, and so do its optimizer's moments. Gradients of both are computed
    in every step. The losses are those of the body's steps.
    """

    Config = FedRepConfig
    title, color, marker, place = "FedRep", "#44aa99", ">", 13
    trains_parts = True

    def train(self, t: int) -> Tensor:
        """Train the head with the body frozen, then the body with the head frozen."""
        last = self.config.body_work
        local_step(self.clients, t, only=self.own, work=slice(None, -last))
        return local_step(self.clients, t, only=self.shared, work=slice(-last, None))


@register.algorithm("fedbabu")
class FedBabu(FinetunedFedAvg, SharedPart):
    """The body is trained with the head frozen at x^0; at the end clients fine-tune (Oh et al., ICLR 2022).

    All clients have x^0's head, also where they start at models of their own (`run.start`); from models of
    another run (`run.init_from`), their mean head. `fedavg_share=1` never fine-tunes, 0 is Local. W is all
    ones, then the identity.
    """

    Config = FedBabuConfig
    title, color, marker, place = "FedBABU", "#999933", "H", 14
    trains_parts = True

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        start_1d = common_start(self.clients, self.exchange, self.context.clients)
        self.head_1k = self.own.take(start_1d).clone()

    def train(self, t: int) -> Tensor:
        """Train the body, with one head for all."""
        if t == 0:
            head_ck = self.own.take(self.clients.x_cd)
            head_ck.copy_(self.head_1k)
            self.own.put(head_ck, self.clients.x_cd)
        return local_step(self.clients, t, only=self.shared)

    def state(self) -> AlgorithmState:
        """Return the head of the start."""
        return AlgorithmState(shared={"head": self.head_1k})


@register.algorithm("lg_fedavg")
class LgFedAvg(SharedPart):
    """The head is averaged, and the body stays with its client (Liang et al., 2020)."""

    Config = LgFedAvgConfig
    title, color, marker, place = "LG-FedAvg", "#ddcc77", "d", 15

    def split(self) -> tuple[Columns, Columns]:
        """Return the body and the head."""
        head, body = super().split()
        return body, head


@register.algorithm("fedbn")
class FedBn(SharedPart):
    """All is averaged but the normalization layers and their statistics (Li et al., ICLR 2021)."""

    Config = FedBnConfig
    title, color, marker, place = "FedBN", "#117733", "s", 16

    def split(self) -> tuple[Columns, Columns]:
        """Return the normalization layers and all others."""
        statistics: tuple[str, ...] = ()
        if self.clients.b_cd.shape[1]:
            statistics = self.clients.columns("*", buffers=True).names
        known = {layer_of(name) for name in statistics if name.endswith("running_mean")}
        own = [name for name in self.clients.columns("*").names if layer_of(name) in known]
        if not self.config.norms and not own and known:
            raise ConfigError(
                f"algorithm.name=fedbn keeps the parameters of normalization layers with their client, and "
                f"this model's layer {min(known)} has none (affine=False), so it would be FedAvg; set "
                "algorithm.name=fedavg, whose algorithm.buffers=local keeps the statistics with their client"
            )
        if not self.config.norms and not own:
            raise ConfigError(
                "algorithm.name=fedbn keeps normalization layers with their client, and this model has none "
                "with running statistics, so it would be FedAvg; choose a model with BatchNorm, as "
                "model.norm=batch, or name layers in algorithm.norms"
            )
        return self.columns("norms", *own)


def layer_of(name: str) -> str:
    """Return the layer of a parameter or buffer: its name up to the last dot.

    >>> layer_of("body.3.weight")
    'body.3'
    """
    return name.rpartition(".")[0] or name
