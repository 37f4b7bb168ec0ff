"""Models by name, initialized from a seed."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

from pydantic import Field

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths import seeds
from cobo_dist.registry import register
from cobo_dist.settings import Widths
from cobo_dist.tasks.sections import ModelSection


@register.model("mlp")
class MlpConfig(ModelSection):
    """Fully connected layers with ReLU."""

    name: Literal["mlp"] = "mlp"
    hidden: Widths = Field((64, 64), description="widths of the hidden layers")
    norm: Literal["none", "batch"] = Field(
        "none", description="normalization after each hidden layer: none or BatchNorm"
    )

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network, not yet initialized."""
        layers: list[nn.Module] = [nn.Flatten(start_dim=1)]
        width = shape.numel()
        for hidden in self.hidden:
            layers.append(nn.Linear(width, hidden))
            if self.norm == "batch":
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(nn.ReLU())
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, classes))


@register.model("linear")
class LinearConfig(ModelSection):
    """One linear layer: multinomial logistic regression."""

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network, not yet initialized."""
        return nn.Sequential(nn.Flatten(start_dim=1), nn.Linear(shape.numel(), classes))


def build_model(
    config: ModelSection, shape: torch.Size, classes: int, seed: int, vocabulary: int = 0
) -> nn.Module:
    """Return the configured classifier of inputs of `shape` into `classes` classes: x^0 of the seed.

    `vocabulary`: inputs are ids of so many tokens; 0: they are numbers.

    >>> build_model(MlpConfig(hidden=(3,)), torch.Size([2]), 4, seed=0)
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=2, out_features=3, bias=True)
      (2): ReLU()
      (3): Linear(in_features=3, out_features=4, bias=True)
    )

    Raises:
        ConfigError: a model that cannot take such inputs.
    """
    least = config.min_pixels
    if least and len(shape) != 3:
        raise ConfigError(
            f"model.name={config.name} takes images, and this task's inputs are {shape.numel()} "
            "numbers; set model.name=mlp"
        )
    if least and min(shape[1:]) < least:
        raise ConfigError(
            f"model.name={config.name} needs images of at least {least} x {least} pixels, and these "
            f"have {shape[1]} x {shape[2]}; set model.name=mlp"
        )
    if bool(vocabulary) != config.takes_text:
        raise ConfigError(
            f"model.name={config.name} takes text, and this task's inputs are numbers; set model.name=mlp"
            if config.takes_text
            else f"model.name={config.name} takes numbers, and this task's inputs are text; set "
            "model.name=lstm"
        )
    if vocabulary:
        shape = torch.Size([*shape, vocabulary])
    with torch.random.fork_rng(devices=[]):  # what layers draw themselves follows from the seed too
        torch.default_generator.manual_seed(seeds.signed(seeds.key(seed, "start of other layers")))
        model = config.build(shape, classes)
    _refuse_no_network(config.name, model)
    if not config.initialized:
        initialize(model, seed)
    return model


def _refuse_no_network(name: str, made: Any) -> None:
    """Check that a model's function or class, which may be a user's, made a network.

    Raises:
        ConfigError: it is none, or its layers do not know their sizes yet.
    """
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"model.name={name} returned {type(made).__name__}; return a torch.nn.Module"
        )
    tensors = itertools.chain(made.named_parameters(), made.named_buffers())
    lazy = [key for key, one in tensors if torch.nn.parameter.is_lazy(one)]
    if lazy:
        raise ConfigError(
            f"model.name={name} has lazy layers ({lazy[0]}), whose sizes the first batch would decide; give "
            "them their sizes, which follow from the argument shape"
        )


def logits_of(output: Any) -> Tensor:
    """Return the logits among what a network returns: a tensor, or an object with a field `logits`.

    In a precision that suffices for a loss: autocast may have made them bfloat16.
    """
    logits: Tensor = getattr(output, "logits", output)
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def initialize(model: nn.Module, seed: int) -> None:
    """Initialize linear and convolution layers: He-uniform weights from keys of the seed, biases zero.

    The inputs of a ResNet's classifier are normalized and never negative. Its bound is smaller,
    1 / sqrt(inputs), so that the first losses are near log(classes).
    Every tensor has its own key, so an added layer does not change the start of the others.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            gain = 1.0 if name == "classifier" else 6.0
            bound = math.sqrt(gain / module.weight[0].numel())
            module.weight.detach().copy_(_uniform(module.weight, bound, seed, name))
            if module.bias is not None:
                module.bias.detach().zero_()


def _uniform(like: Tensor, bound: float, seed: int, name: str) -> Tensor:
    numbers = seeds.uniforms(seeds.key(seed, f"start {name}"), like.numel())
    return ((2.0 * numbers - 1.0) * bound).view_as(like)
