"""Supervised tasks: examples with targets, split over clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.clients.engine_choice import ENGINES
from cobo_dist.clients.engines import Batch
from cobo_dist.clients.learning_task import BatchSource
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.true_graph import Truth
from cobo_dist.registry import BUILT_IN, register
from cobo_dist.tasks.base import DataConfig, Task
from cobo_dist.tasks.drifting import CurrentExamples, truth_of, with_drift
from cobo_dist.tasks.examples import (
    IMAGE_OFFSET,
    IMAGE_SCALE,
    ClientExamples,
    ExampleBatches,
)
from cobo_dist.tasks.functions import (
    LossName,
    MetricNames,
    of_mean,
    refuse_wrong_loss,
    refuse_wrong_metric,
)
from cobo_dist.tasks.held_out import explain_lack, in_turn
from cobo_dist.tasks.model_checks import refuse_unfit_model
from cobo_dist.tasks.models import build_model, logits_of
from cobo_dist.tasks.sections import ModelSection, TaskSection

CHECKED_EXAMPLES = 8
"""Examples on which losses and metrics are tried before training, unless they are the task's usual ones."""


class SupervisedConfig(TaskSection):
    """Examples with targets that are split over clients in clusters."""

    order: Literal["clusters", "shuffled"] = Field(
        "clusters",
        description="how clients are numbered: cluster by cluster (paper), or in a random order, as if the "
        "clusters were unknown",
    )

    loss: LossName
    metrics: MetricNames

    def load(self, data: DataConfig, seed: int, dtype: torch.dtype) -> ClientExamples:
        """Read the examples and split them over the clients, which come cluster by cluster.

        Raises:
            ConfigError: missing or malformed data, or too few examples for so many clients.
        """
        raise TypeError(f"task.name={self.name} has no method load(data, seed, dtype)")

    def client_order(self, clients: int, seed: int) -> list[int]:
        """Return which client, counted cluster by cluster, has the id 0, 1, ..."""
        if self.order == "clusters":
            return list(range(clients))
        return list(seeds.permutation(seeds.key(seed, "client order"), clients).tolist())


class Supervised(Task):
    """Loss and metrics of every client's model on its own examples."""

    engines: tuple[str, ...] = tuple(ENGINES)
    random_order = True

    def __init__(
        self,
        config: SupervisedConfig,
        model: ModelSection,
        data: DataConfig,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        """Load the examples.

        Raises:
            ConfigError: see `SupervisedConfig.load`; or a model that cannot take these inputs.
        """
        self.config, self.name = config, config.name
        self.loss_of = register.loss[config.loss].target
        self.metric_of = {name: register.metric[name].target for name in config.metrics}
        self.metrics = ("loss", *config.metrics)
        self.split_seed = data.split_seed(seed)
        loaded = config.load(data, self.split_seed, dtype)
        order = config.client_order(len(loaded.splits["train"]), self.split_seed)
        self.count = len(
            loaded.examples.targets
        )  # without those that clients only have once they moved
        loaded, self.drift, moved = with_drift(loaded, config.drift_events, order, self.split_seed)
        self.examples = loaded.examples.of_clients(order)
        self.split_of = {
            split: [own[client] for client in order] for split, own in loaded.splits.items()
        }
        self.current = CurrentExamples(self.split_of, self.drift, moved)
        self._moved = moved
        self._sources = WeakKeyDictionary[ExampleBatches, str]()  # open ones, with their splits
        self._truth = truth_of(loaded, self.drift, order)
        self.clusters: tuple[int, ...] | None = self._truth.clusters_at(0)
        self.input_size = 0 if self.examples.vocabulary else self.examples.shape.numel()
        self.true_graph = self._truth.graph_at(0)
        self.names = tuple(loaded.names[client] for client in order) if loaded.names else ()
        self.notices = tuple(" ".join(one.splitlines()) for one in loaded.notices)
        self.label_names = tuple(loaded.label_names)
        self.labels = self.examples.targets if loaded.labels is None else loaded.labels
        self.pools = loaded.pools and [loaded.pools[client] for client in order]
        self.data, self.seed, self.dtype = data, seed, dtype
        self.model_config, self.clients = model, len(order)
        self.batch_size, self.accumulation = data.examples_a_round, data.accumulation
        self.channels_last = self.examples.are_images and self.examples.channels_last
        # A split in which a client has no examples cannot be evaluated.
        self.splits = tuple(n for n in ("validation", "test") if all(map(len, self.split_of[n])))
        first = self.model()  # refuses a model that cannot take these inputs before training starts
        inputs = self.examples.as_inputs(self.examples.inputs[:CHECKED_EXAMPLES])
        known = register.loss[config.loss].source == BUILT_IN
        outputs = self.examples.outputs if known else None
        refuse_unfit_model(first.to(dtype), model.name, inputs, outputs)
        usual = type(config).model_fields
        functions = [register.loss[config.loss], *(register.metric[one] for one in config.metrics)]
        if any(one.source != BUILT_IN for one in functions) or any(
            getattr(config, key) != usual[key].default for key in ("loss", "metrics")
        ):
            self._try_functions(first)

    def _try_functions(self, model: nn.Module) -> None:
        """Refuse a loss or metrics that cannot take the targets before training starts."""
        examples, some = self.examples, torch.arange(len(self.examples.targets))[:CHECKED_EXAMPLES]
        with torch.no_grad():
            outputs = logits_of(model.eval()(examples.as_inputs(examples.inputs[some])))
            targets = examples.targets_of(0, some)
            refuse_wrong_loss(self.config.loss, outputs, targets)
            outputs, targets = self.in_units(outputs), self.in_units(targets)
            for name in self.config.metrics:
                refuse_wrong_metric(name, outputs, targets)

    def lack(self, split: str) -> str:
        """Say which client has no validation examples, and what helps."""
        fraction = self.config.model_dump().get("validation_fraction")
        if split != "validation" or fraction is None:
            return super().lack(split)

        def sizes(fraction: float) -> list[int]:
            config = self.config.model_copy(update={"validation_fraction": fraction})
            return list(map(len, config.load(self.data, self.split_seed, self.dtype).splits[split]))

        now, train = ([len(own) for own in self.split_of[name]] for name in (split, "train"))
        pools = self.pools or [sum(pair) for pair in zip(now, train, strict=True)]
        return explain_lack(fraction, pools, self.clusters or [0] * self.clients, now, sizes)

    @property
    def truth(self) -> Truth:
        """Clusters and graph in each round."""
        return self._truth

    def begin_round(self, r: int) -> None:
        """Give clients that change cluster their new examples or labels."""
        if self.current.begin_round(r):
            for source, split in self._sources.items():
                source.use(self.current.of(split), self.current.donors)

    def model(self) -> nn.Module:
        """Return a model at x^0."""
        return self._build(self.seed)

    def start(self, variant: int = 0) -> dict[str, Tensor]:
        """Return x^0, or another start."""
        seed = seeds.key(self.seed, "start variant", variant) if variant else self.seed
        return {name: one.detach() for name, one in self._build(seed).named_parameters()}

    def _build(self, seed: int) -> nn.Module:
        examples = self.examples
        model = build_model(
            self.model_config, examples.shape, examples.outputs, seed, examples.vocabulary
        )
        # Kernels in the memory format of the images need no reordering in a convolution.
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """Return the mean loss of a batch (inputs, targets, and a dropout mask if any)."""
        inputs, targets, *masks = batch
        mean: Tensor = self.loss_of(logits_of(model(inputs, *masks)), targets, reduction="mean")
        return mean

    def score(self, model: nn.Module, *batch: Tensor) -> dict[str, Tensor]:
        """Return the sums of the loss and of the metrics over a batch (inputs, targets)."""
        inputs, targets = batch
        outputs = logits_of(model(inputs))
        sums = {"loss": self.loss_of(outputs, targets, reduction="sum")}
        outputs, targets = self.in_units(outputs), self.in_units(targets)
        for name, metric in self.metric_of.items():
            each = metric(outputs, targets)
            if each.shape != targets.shape[:1]:
                raise ValueError(
                    f"metric {name} returned shape {tuple(each.shape)} for {len(targets)} examples; return "
                    "one number for each example"
                )
            sums[name] = each.sum()
        return sums

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Return one client's metrics from the sums over so many examples."""
        return {
            name: of_mean(self.metric_of.get(name), value / examples)
            for name, value in sums.items()
        }

    def labels_of(self, client: int, indices: Tensor) -> Tensor:
        """Return the labels by which partitions went, int64; a client's own where it renames classes."""
        return self.labels[indices]

    def in_units(self, numbers: Tensor) -> Tensor:
        """Return outputs or targets as metrics take them: here as they are."""
        return numbers

    def train_sizes(self) -> list[int]:
        """Return how many training examples each client has."""
        return [len(own) for own in self.split_of["train"]]

    def training(self, clients: Sequence[int], device: torch.device) -> BatchSource:
        """Return the training batches of these clients."""
        self._move_to(device)
        train, dropout = self.split_of["train"], self.model_config.dropped_features()
        source = ExampleBatches(self.examples, train, clients, self.seed, self.data, dropout)
        return self._kept_current(source, "train")

    def _kept_current(self, source: ExampleBatches, split: str) -> ExampleBatches:
        """Let a source of batches follow the drift."""
        source.use(self.current.of(split), self.current.donors)
        self._sources[source] = split
        return source

    def validation(
        self, clients: Sequence[int], device: torch.device, batch_size: int
    ) -> BatchSource:
        """Return batches of these clients' validation examples, without augmentation or dropout."""
        self._move_to(device)
        data = self.data.model_copy(update={"batch_size": batch_size, "augment": False})
        held_out, streams = self.split_of["validation"], ("validation",)
        source = ExampleBatches(self.examples, held_out, clients, self.seed, data, streams=streams)
        return self._kept_current(source, "validation")

    def training_inputs(self, client: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return a client's inputs [B, input_size], and the labels by which partitions went."""
        own = self.current.of_client(client, "train")
        stored = self.examples.inputs[to_device(own, self.examples.inputs.device)]
        inputs = self.examples.as_inputs(stored).reshape(len(own), -1).double().cpu().numpy()
        return inputs, self.labels_of(client, own).cpu().numpy()

    def shared_inputs(self, count: int, device: torch.device) -> Batch:
        """Return validation inputs of all clients in turn, or as many as there are."""
        self._move_to(device)
        own = self.split_of["validation"]
        places = in_turn([len(one) for one in own], count)
        chosen = to_device(torch.stack([own[client][k] for client, k in places]), device)
        return (self.examples.as_inputs(self.examples.inputs[chosen]),)

    def predict(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Return outputs for inputs [B, ...]."""
        chunks = torch.split(inputs[0], self.data.eval_batch_size)
        return torch.cat([logits_of(model(chunk)) for chunk in chunks])

    def prediction_shape(self, count: int) -> tuple[int, int]:
        """Return the number of examples, and of outputs."""
        return min(count, sum(map(len, self.split_of["validation"]))), self.examples.outputs

    def evaluation(
        self, client: int, split: str, device: torch.device, whole: bool = True
    ) -> Iterable[tuple[int, Batch]]:
        """Return (count, (inputs, targets)) over one client's examples of `split`.

        With `whole=False` only over `data.eval_examples` of them, the same in every round; clients with the
        same examples evaluate the same part.
        """
        self._move_to(device)
        indices, most = self.current.of_client(client, split), self.data.eval_examples
        if not whole and 0 < most < len(indices):
            key = seeds.key(self.split_seed, f"part of {split}")
            indices = indices[seeds.permutation(key, len(indices))[:most]]
        for chunk in torch.split(to_device(indices, device), self.data.eval_batch_size):
            targets = self.examples.targets_of(self.current.donors[client], chunk)
            yield len(chunk), (self.examples.as_inputs(self.examples.inputs[chunk]), targets)

    def _move_to(self, device: torch.device) -> None:
        if self.examples.inputs.device != device:
            self.examples = self.examples.to(device)

    def model_facts(self) -> dict[str, Any]:
        """Return shape and scale of inputs."""
        examples = self.examples
        return {
            "input_shape": list(examples.shape),
            "images": examples.are_images,
            "scale": IMAGE_SCALE if examples.are_images else examples.scale,
            "offset": IMAGE_OFFSET if examples.are_images else examples.offset,
            **({"text": asdict(examples.text)} if examples.text else {}),
        }

    def partition(self) -> dict[str, NDArray[Any]]:
        """Return client, split and label of every example, where each belongs to one client."""
        if not self.label_names:
            return {}
        labels = self.labels[: self.count].cpu().numpy()
        client, split = np.zeros(len(labels), np.int64), np.zeros(len(labels), np.uint8)
        for number, name in enumerate(("train", "validation", "test")):
            for i, own in enumerate(self.split_of[name]):
                client[own.numpy()], split[own.numpy()] = i, number
        names = {"names": np.array(self.names)} if self.names else {}
        label_names = np.array(self.label_names)
        return {
            "client": client, "split": split, "label": labels, "label_names": label_names, **names
        }  # fmt: skip

    def describe(self) -> dict[str, str]:
        """Return the size of the model and the numbers of examples."""
        facts = super().describe()
        if self.drift is not None:
            facts["drift"] = self.drift.to_text()
        for name, numbers in self.split_of.items():
            least, most = min(map(len, numbers)), max(map(len, numbers))
            facts[name] = f"{least} examples a client" + (f" to {most}" if most > least else "")
        return facts

    def label_counts(self) -> NDArray[np.int64]:
        """Return each client's number of training examples with each of its labels, [n, C]."""
        classes = len(self.label_names) or self.examples.outputs
        counts = [
            self.labels_of(client, own).bincount(minlength=classes)
            for client, own in enumerate(self.current.of("train"))
        ]
        return np.stack([one.cpu().numpy() for one in counts])

    def data_in_memory(self) -> tuple[str, int]:
        """Return the bytes of inputs and targets."""
        return "data, once", sum(one.nbytes for one in self.examples.tensors)

    def fingerprint(self) -> str:
        """Return a digest of examples, labels and splits."""
        moved = [list(splits.values()) for splits in self._moved.values()]
        return self.examples.fingerprint([*self.split_of.values(), *moved])
