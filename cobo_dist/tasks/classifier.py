"""A client's saved network, which takes the data's inputs and returns the data's labels or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.tasks.models import build_model, logits_of
from cobo_dist.tasks.sections import ModelSection
from cobo_dist.tasks.text_format import TextFormat


class SavedModel(nn.Module):
    """A client's network, with what turns the data's inputs into the network's and its outputs back."""

    outputs_fact: ClassVar[str]  # in model.json: the number of outputs

    def __init__(self, network: nn.Module, facts: Mapping[str, Any], client: int) -> None:
        """Wrap the network of a client; `facts` are those of model.json."""
        super().__init__()
        self.network = network
        self.shape, self.images = tuple(facts["input_shape"]), bool(facts["images"])
        self.text = TextFormat(**facts["text"]) if facts.get("text") else None
        self.scale, self.offset = (self._factor(facts[name]) for name in ("scale", "offset"))

    @classmethod
    def rebuild(
        cls,
        config: ModelSection,
        facts: Mapping[str, Any],
        client: int,
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> SavedModel:
        """Return a client's model from its saved parameters and buffers.

        Raises:
            ConfigError: they are not those of this model.
        """
        vocabulary = facts["text"]["vocabulary"] if facts.get("text") else 0
        shape, outputs = torch.Size(facts["input_shape"]), facts[cls.outputs_fact]
        network = build_model(config, shape, outputs, 0, vocabulary)
        try:
            network.to(dtype).load_state_dict(dict(state))
        except RuntimeError as error:
            why = words_of(error)
            raise ConfigError(
                f"client {client}'s model does not fit model.name={config.name}: {why}"
            ) from None
        return cls(network, facts, client)

    def found(self, outputs: Tensor) -> Tensor:
        """Return what outputs [m, outputs] mean in the data."""
        raise TypeError(f"{type(self).__name__} has no method found(outputs)")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs [m, outputs] for inputs as the network takes them (`prepare`)."""
        return logits_of(self.network(inputs))

    def prepare(self, inputs: ArrayLike | Tensor | Sequence[str]) -> Tensor:
        """Return the data's own inputs as the network takes them: in its shape, type and scale.

        Args:
            inputs: [m, ...]; images as bytes [m, H, W, C]; or m texts.

        Raises:
            ValueError: they have another shape, or are no texts.
        """
        if self.text is not None:
            texts = list(np.asarray(inputs, dtype=object).flat)
            if not all(isinstance(one, str) for one in texts):
                raise ValueError("this model takes a list of texts, and inputs hold something else")
            tokens = torch.from_numpy(self.text.encode(texts))
            return tokens.to(next(self.network.parameters()).device)
        # Lists of numbers too must be read in float64: float32 has only 24 bits, and a time has 31.
        whole = None if self.images or isinstance(inputs, Tensor) else torch.float64
        stored = torch.as_tensor(inputs, dtype=whole)
        like = next(self.network.parameters())
        given = list(stored.shape)
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
                f"inputs have shape {given}, and this model takes "
                f"[m, {', '.join(map(str, wanted))}]"
            )
        # Where a mean is large against its spread, only float64 keeps the difference.
        numbers = stored.reshape(count, *self.shape).to(like.device)
        numbers = numbers.to(like.dtype if self.images else torch.float64)
        return numbers.mul(_on(numbers, self.scale)).add(_on(numbers, self.offset)).to(like.dtype)

    def _factor(self, fact: float | list[float]) -> float | Tensor:
        """Return one number, or one for each feature in the shape of an input."""
        if isinstance(fact, list):
            return torch.tensor(fact, dtype=torch.float64).reshape(self.shape)
        return float(fact)

    @property
    def _size(self) -> int:
        return torch.Size(self.shape).numel()

    @torch.no_grad()
    def predict(self, inputs: ArrayLike | Tensor | Sequence[str]) -> Tensor:
        """Return what the model finds for each of the data's own inputs, [m], in evaluation mode.

        A classifier returns labels of the data, int64; a regression numbers in the data's units, float64
        [m], or [m, outputs] where there are several.

        Raises:
            ValueError: as `prepare`.
        """
        was_training = self.training
        self.eval()
        found = self.found(self(self.prepare(inputs)))
        self.train(was_training)
        return found


def _on(like: Tensor, fact: float | Tensor) -> float | Tensor:
    return fact.to(like) if isinstance(fact, Tensor) else fact


class Classifier(SavedModel):
    """A client's network with the labels of the data; `forward` returns logits [m, classes]."""

    outputs_fact = "classes"

    def __init__(self, network: nn.Module, facts: Mapping[str, Any], client: int) -> None:
        """Wrap the network of a client; `facts` are those of model.json."""
        super().__init__(network, facts, client)
        outputs = torch.tensor(facts["label_maps"][facts["label_map_of"][client]])
        labels = torch.full((facts["classes"],), -1)
        labels[outputs[outputs >= 0]] = torch.arange(len(outputs))[outputs >= 0]
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)  # of the data, for each output

    def found(self, outputs: Tensor) -> Tensor:
        """Return the label in the data of each example, int64 [m]."""
        return self.labels[outputs.argmax(dim=1)]


class Regressor(SavedModel):
    """A client's network with the units of the data; `forward` returns standardized numbers."""

    outputs_fact = "outputs"

    def __init__(self, network: nn.Module, facts: Mapping[str, Any], client: int) -> None:
        """Wrap the network of a client; `facts` are those of model.json."""
        super().__init__(network, facts, client)
        self.target_scale: Tensor
        self.target_offset: Tensor
        for name in ("target_scale", "target_offset"):
            self.register_buffer(name, torch.tensor(facts[name], dtype=torch.float64), False)

    def found(self, outputs: Tensor) -> Tensor:
        """Return numbers in the data's units, float64 [m], or [m, outputs] where there are several."""
        numbers = (outputs.double() - self.target_offset) / self.target_scale
        return numbers[:, 0] if numbers.shape[1] == 1 else numbers
