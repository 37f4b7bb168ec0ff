"""Algorithms by name: every module of this package registers its own."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from cobo_dist import algorithms
from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection, own
from cobo_dist.algorithms.base import Clients, Exchange, RunContext
from cobo_dist.registry import register

for _module in pkgutil.iter_modules(algorithms.__path__, f"{algorithms.__name__}."):
    import_module(_module.name)

ALGORITHMS = register.algorithm
"""All registered algorithms, those of plug-ins included."""


def shown_as(config: AlgorithmSection, clients: int) -> dict[str, Any]:
    """Return what reports must know of an algorithm, by the names of `storage.schema.Method`."""
    algorithm = ALGORITHMS[config.name].target
    found = {name: own(algorithm, name) for name in ("title", "color", "marker", "place", "role")}
    return found | {
        "title": found["title"] or config.name,
        "learns_weights": algorithm.learns_weights,
        "equal_share": config.equal_share(clients),
    }


def build_algorithm(
    config: AlgorithmSection, clients: Clients, exchange: Exchange, context: RunContext
) -> Algorithm:
    """Return the configured algorithm over this rank's clients."""
    algorithm: Algorithm = ALGORITHMS[config.name].target(config, clients, exchange, context)
    return algorithm
