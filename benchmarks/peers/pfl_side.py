"""FedAvg in Apple's pfl: python -m peers.pfl_side PROBLEM FOLDER THREADS, or torchrun -m ..."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from importlib.metadata import version

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import distributed
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from peers.work import LEARNING_RATE, Problem, now, write_result


class Learner(nn.Module):
    """The model with the two methods that pfl calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return a client's loss."""
        return nn.functional.cross_entropy(self.model(inputs), targets)

    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Weighted]:
        """Return the metrics that pfl reports."""
        with torch.no_grad():
            return {"loss": Weighted.from_unweighted(self.loss(inputs, targets).item())}


class RoundTimes(TrainingProcessCallback):
    """Records when rounds end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Record when the first round begins."""
        self.ends.append(now())
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Record the end of a round."""
        self.ends.append(now())
        return False, Metrics()


def main() -> None:
    """Train; the first process writes the result."""
    path, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    problem = Problem(path)
    visits: Counter[int] = Counter()

    def batch_of(client: int) -> Dataset:
        """Return a client's data of its current round: one batch."""
        visits[client] += 1
        return Dataset(problem.batch(visits[client] - 1, client), user_id=str(client))

    everyone = itertools.cycle(range(problem.clients))
    data = FederatedDataset(batch_of, lambda: next(everyone))
    learner = Learner(problem.model).train()
    model = PyTorchModel(learner, torch.optim.SGD, torch.optim.SGD(learner.parameters(), lr=1.0))
    watch = RoundTimes()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=problem.rounds,
            evaluation_frequency=problem.rounds,
            train_cohort_size=problem.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(
            local_batch_size=None, local_num_epochs=1, local_learning_rate=LEARNING_RATE
        ),
        callbacks=[watch],
    )
    if distributed.global_rank == 0:
        last = dict(learner.model.named_parameters())
        write_result(folder, watch.ends, last, {"pfl": version("pfl")})


if __name__ == "__main__":
    main()
