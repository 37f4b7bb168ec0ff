"""Algorithms by name: every module of this package registers its own."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from cobo_dist import algorithms
from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection, own
from cobo_dist.algorithms.base import AlgorithmState, Clients, Exchange, RunContext
from cobo_dist.errors import ConfigError
from cobo_dist.maths.weights import Weights
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


_of_section: dict[type[AlgorithmSection], type[Algorithm]] = {}
"""Algorithms of sections in use: the registry may hold another config's plug-ins when a run builds again."""


def build_algorithm(
    config: AlgorithmSection, clients: Clients, exchange: Exchange, context: RunContext
) -> Algorithm:
    """Return the configured algorithm over this rank's clients.

    Raises:
        ConfigError: what the algorithm of a plug-in has made is not as the base class says.
    """
    if type(config) not in _of_section:
        _of_section[type(config)] = ALGORITHMS[config.name].target
    algorithm = _of_section[type(config)](config, clients, exchange, context)
    _check(algorithm, config.name)
    return algorithm


def _check(algorithm: Algorithm, name: str) -> None:
    what = f"algorithm.name={name}: {type(algorithm).__name__}"
    if not hasattr(algorithm, "user_notice"):
        raise ConfigError(
            f"{what}.__init__ does not call super().__init__(config, clients, exchange, context); add it"
        )
    weights: object = algorithm.weights
    if not isinstance(weights, Weights):
        given = type(weights).__name__
        raise ConfigError(
            f"{what}.weights is a {given}; make it a cobo_dist.Weights, as Weights.of_rows(ids, rows)"
        )
    shape = (len(algorithm.clients.ids), algorithm.context.clients)
    if algorithm.weights.shape != shape:
        raise ConfigError(
            f"{what}.weights has shape {algorithm.weights.shape}; make it {shape}: a row for each client "
            "of this rank"
        )
    state: object = algorithm.state()
    if not isinstance(state, AlgorithmState):
        raise ConfigError(
            f"{what}.state() returned a {type(state).__name__}; return an AlgorithmState"
        )
    for key, rows in state.rows.items():
        if len(rows) != shape[0]:
            raise ConfigError(
                f"{what}.state() has {len(rows)} rows of {key} for {shape[0]} clients; what is not by client "
                "belongs to `shared`"
            )
