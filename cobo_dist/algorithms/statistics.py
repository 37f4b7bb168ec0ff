"""Statistics of two gradients by name: what may change a weight in place of their inner product."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator

from cobo_dist.maths.alignment import Statistic, cosine, inner
from cobo_dist.registry import register, registered, takes


def _check(target: Any) -> str:
    if not callable(target):
        return f"{target!r} cannot be called"
    return takes(target, None, None, None) and takes(target, None)


register.new_kind(
    "statistic",
    "a function of the inner products [e], or of these and the squared norms of both gradients",
    check=_check,
)
register.statistic("inner")(inner)
register.statistic("cosine")(cosine)


StatisticName = Annotated[str, AfterValidator(partial(registered, "statistic"))]
"""A config value that names a registered statistic."""


def statistic_of(name: str) -> Statistic:
    """Return a registered statistic."""
    function = register.statistic[name].target
    return Statistic(name, function, needs_norms=not takes(function, None, None, None))
