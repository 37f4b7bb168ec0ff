"""Losses and metrics of classification by name.

A loss is a function as torch.nn.functional has them: `loss(outputs, targets, reduction="mean")` takes outputs
[B, classes] and targets [B], and returns the mean, or with `reduction="sum"` the sum, over the examples of a
batch. A metric returns a number for each example [B]; its mean over all examples is logged.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from cobo_dist.lazy import Tensor, nn
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


@register.loss("cross_entropy")
def cross_entropy(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits."""
    return nn.functional.cross_entropy(outputs, targets, reduction=reduction)


@register.metric("accuracy")
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return whether the largest output is that of the right class."""
    return outputs.argmax(dim=1) == targets
