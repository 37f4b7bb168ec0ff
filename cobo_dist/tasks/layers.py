"""A network as a list of torch.nn's layers, from which plain PyTorch builds it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

from cobo_dist.lazy import nn

Layer = tuple[str, dict[str, Any]]
"""Name of a layer in torch.nn, and its arguments that are not the defaults."""


def layers_of(network: nn.Module) -> list[Layer] | None:
    """Return the layers of a `torch.nn.Sequential`; None: the network is no such sequence.

    >>> layers_of(nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU()))
    [('Linear', {'in_features': 2, 'out_features': 3, 'bias': False}), ('ReLU', {})]
    """
    if type(network) is not nn.Sequential:
        return None
    layers = [(type(layer).__name__, _arguments(layer)) for layer in network]
    try:
        # As a reader of the file builds it: what cannot be told by arguments is not told at all.
        same = repr(network_of(json.loads(json.dumps(layers)))) == repr(network)
    except (AttributeError, TypeError, ValueError):
        return None
    return layers if same else None


def network_of(layers: Sequence[Sequence[Any]]) -> nn.Module:
    """Return the network of these layers."""
    return nn.Sequential(*(getattr(nn, kind)(**arguments) for kind, arguments in layers))


def _arguments(layer: nn.Module) -> dict[str, Any]:
    """Return the arguments of the layer's constructor, as its attributes of that name have them."""
    found = {}
    for name, parameter in inspect.signature(type(layer)).parameters.items():
        value = getattr(layer, name, parameter.default)
        if name == "bias":
            value = value is not None and value is not False
        if value is not parameter.default and value != parameter.default:
            found[name] = value
    return found
