"""Losses and metrics by name.

A loss is a function as torch.nn.functional has them: `loss(outputs, targets, reduction="mean")` takes outputs
[B, classes] and labels [B], or outputs and numbers [B, outputs], and returns the mean, or with
`reduction="sum"` the sum, over the examples of a batch. A metric returns a number for each example [B]; its
mean over all examples is logged, or what the metric's `of_mean` makes of it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.registry import BUILT_IN, function_of, register, registered, takes
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
        value = _tried("loss", name, outputs, targets, reduction=reduction)
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


def refuse_wrong_metric(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Check on some examples that a registered metric returns a number for each.

    Raises:
        ConfigError: it does not.
    """
    value = _tried("metric", name, outputs, targets)
    if register.metric[name].source == BUILT_IN and not _fits("metric", name, outputs, targets):
        raise _unfit("metric", name, outputs, targets)
    if not isinstance(value, torch.Tensor) or value.shape != targets.shape[:1]:
        what = f"shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise ConfigError(
            f"task.metrics={name} returned {what} for {len(targets)} examples; return one number for each"
        )


def _tried(kind: str, name: str, outputs: Tensor, targets: Tensor, **how: str) -> Any:
    """Return what a loss or metric returns.

    Raises:
        ConfigError: it cannot take these outputs and targets.
    """
    try:
        return register.kinds[kind][name].target(outputs, targets, **how)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise _unfit(kind, name, outputs, targets, f" ({words_of(error)})") from None


def _unfit(kind: str, name: str, outputs: Tensor, targets: Tensor, why: str = "") -> ConfigError:
    """Return the refusal of a loss or metric for these targets, with those that take them."""
    known = register.kinds[kind]
    own = [one for one in known if known[one].source == BUILT_IN]
    fitting = [one for one in own if _fits(kind, one, outputs, targets)]
    key = "task.loss" if kind == "loss" else "task.metrics"
    return ConfigError(
        f"{key}={name} cannot take outputs {list(outputs.shape)} and targets {list(targets.shape)} of "
        f"{str(targets.dtype).partition('.')[2]}{why}; choose {' or '.join(fitting) or f'another {kind}'}"
    )


def _fits(kind: str, name: str, outputs: Tensor, targets: Tensor) -> bool:
    """Return whether a loss gives a number for these targets, or a metric one for each example."""
    how = {"reduction": "mean"} if kind == "loss" else {}
    try:
        value = register.kinds[kind][name].target(outputs, targets, **how)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return bool(value.shape == (() if kind == "loss" else targets.shape[:1]))


def of_mean(metric: Any, mean: float) -> float:
    """Return what a metric makes of its mean over examples: the mean, unless it has a method `of_mean`."""
    return float(metric.of_mean(mean)) if hasattr(metric, "of_mean") else mean


@register.loss("cross_entropy")
def cross_entropy(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits.

    Not torch's function: vmap takes that apart in Python, which a round of small models notices, and imports
    torch's symbolic shapes for it: half a second and 40 MB on every rank.

    Raises:
        ValueError: the targets are no labels.
    """
    if targets.is_floating_point():
        raise ValueError("cross-entropy takes labels")
    each = -outputs.log_softmax(dim=1).gather(1, targets.unsqueeze(1))
    return each.sum() if reduction == "sum" else each.mean()


@register.metric("accuracy")
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return whether the largest output is that of the right class."""
    return outputs.argmax(dim=1) == targets


def _errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return outputs - targets, [B, outputs].

    Raises:
        ValueError: they are not alike.
    """
    if outputs.shape != targets.shape:
        raise ValueError("outputs and targets of a regression have one shape")
    return outputs - targets


def _over_examples(each: Tensor, reduction: str) -> Tensor:
    """Return the mean or the sum over examples; one of several outputs counts by the mean over them."""
    mean_of_each = each.mean(dim=1)
    return mean_of_each.sum() if reduction == "sum" else mean_of_each.mean()


@register.loss("mse")
def mse(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the squared error."""
    return _over_examples(_errors(outputs, targets).square(), reduction)


@register.loss("l1")
def l1(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the absolute error."""
    return _over_examples(_errors(outputs, targets).abs(), reduction)


@register.loss("huber")
def huber(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return half the squared error up to an error of 1, from there on the absolute error less 1/2."""
    error = _errors(outputs, targets)
    return _over_examples(
        nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none"), reduction
    )


@register.metric("mae")
def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute error of each example, the mean over its outputs."""
    return _errors(outputs, targets).abs().mean(dim=1)


class Rmse:
    """The root of the mean squared error of a client's examples."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error of each example, the mean over its outputs."""
        return _errors(outputs, targets).square().mean(dim=1)

    def of_mean(self, mean: float) -> float:
        """Return the root."""
        return math.sqrt(mean)


register.metric("rmse")(Rmse())
