"""Algorithms by name."""

from __future__ import annotations

from typing import Any

from .base import Algorithm, Clients, Exchange, Setting
from .cobo import CoBo, CoBoConfig
from .fedavg import FedAvg, FedAvgConfig
from .local import Local, LocalConfig
from .oracle import Oracle, OracleConfig

AlgorithmConfig = LocalConfig | FedAvgConfig | OracleConfig | CoBoConfig

ALGORITHMS: dict[str, Any] = {
    "local": Local,
    "fedavg": FedAvg,
    "oracle": Oracle,
    "cobo": CoBo,
}

NEEDS_CLUSTERS = frozenset({"oracle"})
"""Algorithms that are told the true clusters."""


def build_algorithm(
    config: AlgorithmConfig, clients: Clients, exchange: Exchange, setting: Setting
) -> Algorithm:
    """Return the configured algorithm over this rank's clients."""
    algorithm: Algorithm = ALGORITHMS[config.name](config, clients, exchange, setting)
    return algorithm
