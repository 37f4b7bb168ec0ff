"""A dense twin of FedAvg: plain torch, one client after the other, with its own loop over batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cobo_dist.config import load_config
from cobo_dist.maths import seeds
from cobo_dist.tasks.registry import build_task


class DenseFedAvg:
    """The clients of a classification task without augmentation, in float64."""

    def __init__(self, arguments: list[str]) -> None:
        self.config = load_config(None, arguments)
        config = self.config
        self.task: Any = build_task(
            config.task, config.model, config.data, config.run.seed, torch.float64
        )
        self.n, self.seed = self.task.clients, config.run.seed
        self.models = [self.task.model().double() for _ in range(self.n)]
        self.optimizers = [
            torch.optim.SGD(
                model.parameters(),
                lr=config.optimizer.lr,
                momentum=config.optimizer.momentum,
                weight_decay=config.optimizer.weight_decay,
            )
            for model in self.models
        ]
        self.train = self.task.split_of["train"]

    def order(self, client: int, epoch: int) -> torch.Tensor:
        numbers = self.train[client]
        key = seeds.key(self.seed, "batches local", client, epoch)
        return numbers[seeds.permutation(key, len(numbers))]

    def batches(self, client: int, t: int) -> list[torch.Tensor]:
        """Return the example numbers of each local step of round t."""
        local, size = self.config.local, self.config.data.examples_a_round
        count = len(self.train[client])
        if local.epochs:
            orders = [
                self.order(client, epoch)
                for epoch in range(t * local.epochs, (t + 1) * local.epochs)
            ]
            parts = [part for order in orders for part in torch.split(order, size)]
            return [part for part in parts if len(part) == size or not local.drop_last]
        found = []
        for number in range(t * local.steps, (t + 1) * local.steps):
            places = range(number * size, (number + 1) * size)
            found.append(torch.stack([self.order(client, p // count)[p % count] for p in places]))
        return found

    def backward(self, client: int, numbers: torch.Tensor) -> None:
        """Compute the gradient of a client's loss on some of its examples."""
        model, examples = self.models[client], self.task.examples
        inputs = examples.as_inputs(examples.inputs[numbers])
        targets = examples.labels_of[client][examples.targets[numbers]]
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()

    def local_work(self, client: int, t: int) -> None:
        for numbers in self.batches(client, t):
            self.backward(client, numbers)
            if clip := self.config.local.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.models[client].parameters(), clip)
            self.optimizers[client].step()

    def train_rounds(self, rounds: int, groups: list[int]) -> np.ndarray:
        """Train, and average within groups after every round; return the models [n, d]."""
        for t in range(rounds):
            part = self.taking_part(t)
            for client in part:
                self.local_work(client, t)
            for group in set(groups):
                members = [i for i in range(self.n) if groups[i] == group]
                self.average(members, [i for i in members if i in part])
        return self.rows()

    def taking_part(self, t: int) -> list[int]:
        count = self.config.participation.count or self.n
        return seeds.permutation(seeds.key(self.seed, "clients", t), self.n).tolist()[:count]

    def average(self, members: list[int], part: list[int]) -> None:
        if not part:
            return
        shares = self.shares(part)
        mean = [
            sum(share * one.data for share, one in zip(shares, parameters, strict=True))
            for parameters in zip(*(self.models[i].parameters() for i in part), strict=True)
        ]
        for i in members:
            for parameter, value in zip(self.models[i].parameters(), mean, strict=True):
                parameter.data.copy_(value)

    def shares(self, part: list[int]) -> list[float]:
        sizes = [1.0] * len(part)
        if self.config.algorithm.weighting == "examples":
            sizes = [len(self.train[i]) for i in part]
        return [size / sum(sizes) for size in sizes]

    def rows(self) -> np.ndarray:
        return np.stack([
            torch.cat([one.detach().flatten() for one in model.parameters()]).numpy()
            for model in self.models
        ])  # fmt: skip


def trained_rows(folder: Path, like: DenseFedAvg) -> np.ndarray:
    """Return the final models of a run folder [n, d], their parameters in the module's order."""
    from safetensors.torch import load_file

    names = [name for name, _ in like.models[0].named_parameters()]
    found = []
    for path in sorted((folder / "models").glob("*.safetensors")):
        state = load_file(path)
        found.append(torch.cat([state[name].flatten() for name in names]).numpy())
    return np.stack(found)
