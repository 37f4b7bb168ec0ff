"""Algorithms by name."""

from __future__ import annotations

from typing import Any

from .base import Algorithm, Clients, Exchange, Setting
from .cobo import CoBo, CoBoConfig
from .ditto import Ditto, DittoConfig
from .fedavg import FedAvg, FedAvgConfig
from .federated_clustering import FederatedClustering, FederatedClusteringConfig
from .finetuned_fedavg import FinetunedFedAvg, FinetunedFedAvgConfig
from .ifca import Ifca, IfcaConfig
from .local import Local, LocalConfig
from .oracle import Oracle, OracleConfig
from .validation_based import ValidationBased, ValidationBasedConfig

AlgorithmConfig = (
    LocalConfig
    | FedAvgConfig
    | FinetunedFedAvgConfig
    | DittoConfig
    | IfcaConfig
    | FederatedClusteringConfig
    | ValidationBasedConfig
    | OracleConfig
    | CoBoConfig
)

ALGORITHMS: dict[str, Any] = {
    "local": Local,
    "fedavg": FedAvg,
    "finetuned_fedavg": FinetunedFedAvg,
    "ditto": Ditto,
    "ifca": Ifca,
    "federated_clustering": FederatedClustering,
    "validation_based": ValidationBased,
    "oracle": Oracle,
    "cobo": CoBo,
}


def needs_clusters(config: AlgorithmConfig) -> bool:
    """Return whether the algorithm must be told the true clusters."""
    if isinstance(config, IfcaConfig):
        return config.centers == 0
    return isinstance(config, (OracleConfig, FederatedClusteringConfig))


def needs_validation(config: AlgorithmConfig) -> bool:
    """Return whether clients score models on validation data."""
    return isinstance(config, ValidationBasedConfig)


def equal_share(config: AlgorithmConfig, clients: int) -> float:
    """Return one client's equal share of a row of W where rows sum to 1, and 0 where they do not."""
    if isinstance(config, CoBoConfig) and config.domain == "simplex":
        return 1.0 / max(1, clients - (config.own_weight == "excluded"))
    if isinstance(config, ValidationBasedConfig):
        return 1.0 / clients
    return 0.0


def build_algorithm(
    config: AlgorithmConfig, clients: Clients, exchange: Exchange, setting: Setting
) -> Algorithm:
    """Return the configured algorithm over this rank's clients."""
    algorithm: Algorithm = ALGORITHMS[config.name](config, clients, exchange, setting)
    return algorithm
