"""What one rank trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.exchange import Exchange
from cobo_dist.tasks.base import Task


@dataclass
class Learner:
    """This rank's clients on the task, and the algorithm that moves their models."""

    task: Task
    clients: ClientBatch
    exchange: Exchange
    new_algorithm: Callable[[], Algorithm]  # over the clients that are on this rank now
    algorithm: Algorithm = field(init=False)

    def __post_init__(self) -> None:
        self.algorithm = self.new_algorithm()
