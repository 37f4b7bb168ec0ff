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

AlgorithmConfig = (
    LocalConfig
    | FedAvgConfig
    | FinetunedFedAvgConfig
    | DittoConfig
    | IfcaConfig
    | FederatedClusteringConfig
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
    "oracle": Oracle,
    "cobo": CoBo,
}


def needs_clusters(config: AlgorithmConfig) -> bool:
    """Return whether the algorithm must be told the true clusters."""
    if isinstance(config, IfcaConfig):
        return config.centers == 0
    return isinstance(config, (OracleConfig, FederatedClusteringConfig))


def build_algorithm(
    config: AlgorithmConfig, clients: Clients, exchange: Exchange, setting: Setting
) -> Algorithm:
    """Return the configured algorithm over this rank's clients."""
    algorithm: Algorithm = ALGORITHMS[config.name](config, clients, exchange, setting)
    return algorithm
