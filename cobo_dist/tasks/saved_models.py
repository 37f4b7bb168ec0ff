"""Rebuilds the models that a run saved, without its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cobo_dist.errors import ConfigError
from cobo_dist.tasks.language.base import load_base
from cobo_dist.tasks.language.config import LanguageConfig, LanguageModelConfig
from cobo_dist.tasks.language.libraries import library
from cobo_dist.tasks.models import build_model
from cobo_dist.tasks.quadratic import Point, QuadraticConfig
from cobo_dist.tasks.registry import ModelConfig, TaskConfig


class Classifier(nn.Module):
    """A client's network, with what turns the data's inputs and labels into the network's and back."""

    def __init__(self, network: nn.Module, facts: Mapping[str, Any], client: int) -> None:
        """Wrap the network of a client; `facts` are those of model.json."""
        super().__init__()
        self.network = network
        self.shape, self.images = tuple(facts["input_shape"]), bool(facts["images"])
        self.scale, self.offset = float(facts["scale"]), float(facts["offset"])
        outputs = torch.tensor(facts["label_maps"][facts["label_map_of"][client]])
        labels = torch.full((facts["classes"],), -1)
        labels[outputs] = torch.arange(len(outputs))
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)  # of the data, for each output

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits [m, classes] of inputs as the network takes them (`prepare`)."""
        logits: Tensor = self.network(inputs)
        return logits

    def prepare(self, inputs: ArrayLike | Tensor) -> Tensor:
        """Return the data's own inputs as the network takes them: in its shape, type and scale.

        Args:
            inputs: [m, ...]; images as bytes [m, H, W, C].

        Raises:
            ValueError: they have another shape.
        """
        stored = torch.as_tensor(inputs)
        like = next(self.network.parameters())
        if self.images and stored.dim() == 4:
            stored = stored.movedim(-1, -3)
        count = len(stored) if stored.dim() else 0
        fits = (
            stored.shape[1:] == self.shape if self.images else stored.numel() == count * self._size
        )
        if not stored.dim() or not fits:
            channels, *pixels = self.shape if self.images else (0, *self.shape)
            wanted = [*pixels, channels] if self.images else pixels
            raise ValueError(
                f"inputs have shape {list(torch.as_tensor(inputs).shape)}, and this model takes "
                f"[m, {', '.join(map(str, wanted))}]"
            )
        numbers = stored.to(like).mul(self.scale).add(self.offset)
        return numbers.reshape(count, *self.shape)

    @property
    def _size(self) -> int:
        return torch.Size(self.shape).numel()

    @torch.no_grad()
    def predict(self, inputs: ArrayLike | Tensor) -> Tensor:
        """Return the label in the data of each of the data's own inputs, int64 [m], in evaluation mode.

        Raises:
            ValueError: as `prepare`.
        """
        was_training = self.training
        self.eval()
        found = self.labels[self(self.prepare(inputs)).argmax(dim=1)]
        self.train(was_training)
        return found


def rebuild_model(
    task: TaskConfig,
    model: ModelConfig,
    facts: Mapping[str, Any],
    client: int,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> nn.Module:
    """Return a client's model from its parameters and buffers, in evaluation mode.

    Raises:
        ConfigError: they are not those of this model.
    """
    if isinstance(task, QuadraticConfig):
        module: nn.Module = Point(state["x"])
    else:
        assert not isinstance(model, LanguageModelConfig), (
            "language models are read by `read_adapted`"
        )
        shape = torch.Size(facts["input_shape"])
        network = build_model(model, shape, facts["classes"], seed=0).to(dtype)
        try:
            network.load_state_dict(dict(state))
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise ConfigError(
                f"client {client}'s model does not fit model.name={model.name}: {why}"
            ) from None
        module = Classifier(network, facts, client)
    return module.eval()


def read_adapted(task: LanguageConfig, model: LanguageModelConfig, folder: Path) -> nn.Module:
    """Return the PEFT model of the base and the adapters in a folder, in evaluation mode.

    Raises:
        ConfigError: the base is not on this machine.
    """
    base = load_base(model, task.context)
    adapted: nn.Module = library("peft").PeftModel.from_pretrained(base.model, str(folder))
    return adapted.eval()
