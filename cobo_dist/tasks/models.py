"""Models by name, each started from a seed of its own."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cobo_dist.maths import seeds
from cobo_dist.settings import Section, Widths


class ModelConfig(Section):
    """The model that every client trains."""

    name: Literal["mlp"] = Field("mlp", description="mlp: fully connected layers with ReLU")
    hidden: Widths = Field((64, 64), description="widths of the hidden layers")
    norm: Literal["none", "batch"] = Field(
        "none", description="normalisation after each hidden layer: none or BatchNorm"
    )


def build_model(config: ModelConfig, inputs: int, classes: int, seed: int) -> nn.Module:
    """Return the configured classifier of `inputs` numbers into `classes` classes: x^0 of the seed."""
    layers: list[nn.Module] = [nn.Flatten(start_dim=1)]
    width = inputs
    for hidden in config.hidden:
        layers.append(nn.Linear(width, hidden))
        if config.norm == "batch":
            layers.append(nn.BatchNorm1d(hidden))
        layers.append(nn.ReLU())
        width = hidden
    layers.append(nn.Linear(width, classes))
    model = nn.Sequential(*layers)
    start(model, seed)
    return model


@torch.no_grad()
def start(model: nn.Module, seed: int) -> None:
    """Draw the weights of all linear layers, He-uniform, biases zero, from keys of the seed.

    Every tensor has a key of its own: adding a layer leaves the start of the others as it was.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6.0 / module.in_features)
            module.weight.copy_(_uniform(module.weight, bound, seed, name))
            module.bias.zero_()


def _uniform(like: Tensor, bound: float, seed: int, name: str) -> Tensor:
    numbers = seeds.uniforms(seeds.key(seed, f"start {name}"), like.numel())
    return ((2.0 * numbers - 1.0) * bound).view_as(like)
