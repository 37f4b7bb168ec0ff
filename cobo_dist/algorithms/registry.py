"""Algorithms by name."""

from __future__ import annotations

from typing import Any

from cobo_dist.algorithms.base import Algorithm, Clients, Exchange, RunContext
from cobo_dist.algorithms.cobo import CoBo, CoBoConfig
from cobo_dist.algorithms.ditto import Ditto, DittoConfig
from cobo_dist.algorithms.fedavg import FedAvg, FedAvgConfig
from cobo_dist.algorithms.federated_clustering import FederatedClustering, FederatedClusteringConfig
from cobo_dist.algorithms.finetuned_fedavg import FinetunedFedAvg, FinetunedFedAvgConfig
from cobo_dist.algorithms.ifca import Ifca, IfcaConfig
from cobo_dist.algorithms.local import Local, LocalConfig
from cobo_dist.algorithms.oracle import Oracle, OracleConfig
from cobo_dist.algorithms.validation_based import ValidationBased, ValidationBasedConfig

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


def build_algorithm(
    config: AlgorithmConfig, clients: Clients, exchange: Exchange, context: RunContext
) -> Algorithm:
    """Return the configured algorithm over this rank's clients."""
    algorithm: Algorithm = ALGORITHMS[config.name](config, clients, exchange, context)
    return algorithm
