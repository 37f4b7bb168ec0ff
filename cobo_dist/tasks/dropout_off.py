"""Dropout of networks from libraries, turned off: it draws from a generator that ranks do not share."""

from __future__ import annotations

from cobo_dist.lazy import nn

_WITH_P = ("StochasticDepth", "DropBlock2d", "DropBlock3d")  # of torchvision


def turn_off_dropout(model: nn.Module) -> None:
    """Set every share that a network drops to 0: of its layers, and of numbers named `dropout` or alike."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _WITH_P:
            setattr(module, "p", 0.0)  # noqa: B010 - mypy takes a plain assignment for one of a layer
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def dropping_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that drop a share of their inputs in training."""
    return [
        name
        for name, module in model.named_modules()
        if getattr(module, "p", 0)
        or any("drop" in key and isinstance(n, float) and n for key, n in vars(module).items())
    ]
