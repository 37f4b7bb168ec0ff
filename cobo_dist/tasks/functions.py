"""Losses and metrics of classification by name.

A loss is a function as torch.nn.functional has them: `loss(outputs, targets, reduction="mean")` takes outputs
[B, classes] and targets [B], and returns the mean, or with `reduction="sum"` the sum, over the examples of a
batch. A metric returns a number for each example [B]; its mean over all examples is logged.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.registry import function_of, register, registered, takes
from cobo_dist.settings import as_tuple


def _check_loss(target: Any) -> str:
    if not callable(target):
        return f"{target!r} cannot be called"
    return takes(target, None, None, reduction="mean")


register.new_kind(
    "loss", "a function (outputs, targets, reduction) as in torch.nn.functional", check=_check_loss
)
register.new_kind(
    "metric",
    "a function (outputs, targets) that returns a number for each example",
    check=function_of(None, None),
)

LossName = Annotated[str, AfterValidator(partial(registered, "loss"))]
"""A config value that names a registered loss."""

MetricNames = Annotated[
    tuple[Annotated[str, AfterValidator(partial(registered, "metric"))], ...],
    BeforeValidator(as_tuple),
]
"""A config value that names registered metrics."""


def refuse_wrong_loss(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Check on some examples that a registered loss heeds `reduction`.

    Raises:
        ConfigError: it returns no number, or its sum is not the number of examples times its mean.
    """
    found = {}
    for reduction in ("mean", "sum"):
        value: Any = register.loss[name].target(outputs, targets, reduction=reduction)
        if not isinstance(value, torch.Tensor) or value.shape:
            what = f"shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise ConfigError(
                f"task.loss={name} returned {what} with reduction={reduction!r}; return a tensor of one "
                "number, of shape []"
            )
        found[reduction] = float(value)
    count = len(targets)
    finite = all(map(math.isfinite, found.values()))
    if finite and not math.isclose(found["sum"], count * found["mean"], rel_tol=1e-3, abs_tol=1e-6):
        raise ConfigError(
            f"task.loss={name} returned {found['mean']:.6g} with reduction='mean' and {found['sum']:.6g} "
            f"with 'sum' for {count} examples; return the mean over the examples, and {count} times as "
            "much as the sum"
        )


@register.loss("cross_entropy")
def cross_entropy(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits."""
    return nn.functional.cross_entropy(outputs, targets, reduction=reduction)


@register.metric("accuracy")
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return whether the largest output is that of the right class."""
    return outputs.argmax(dim=1) == targets
