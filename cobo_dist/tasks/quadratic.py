"""Task `quadratic`: the paper's Example 2, f_i(x) = a_i/2 ||x - mu_i||^2.

Its solutions have a closed form, so the algorithm can be checked on it: consensus distance and gradient norm
are logged every round, and Theorem 1 bounds their decay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.clients.batches import number_of
from cobo_dist.clients.engine_choice import ENGINES
from cobo_dist.clients.engines import Batch
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.true_graph import Truth
from cobo_dist.registry import register
from cobo_dist.scenario.drift import drift_of
from cobo_dist.settings import Text
from cobo_dist.tasks.base import DataConfig, Task
from cobo_dist.tasks.npz import read_arrays
from cobo_dist.tasks.sections import DriftingSection, ModelSection


@register.task("quadratic")
class QuadraticConfig(DriftingSection):
    """Quadratic losses around given centers (Example 2)."""

    title: ClassVar[str] = "Quadratic"
    place: ClassVar[int] = 5

    model_kind: ClassVar[Literal["classifier", "language", "none"]] = "none"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    name: Literal["quadratic"] = "quadratic"
    file: Text = Field(
        "",
        description="problem.npz with centers [n, d], curvature [n], start [d]; examples [n], by default "
        "1 each, for local.epochs and algorithm.weighting; clusters [n] if "
        "known (otherwise clients with equal centers form a cluster)",
    )
    noise: float = Field(
        0.0, ge=0, description="standard deviation of the gradient noise in each coordinate"
    )

    def build(self, model: ModelSection, data: DataConfig, seed: int, dtype: torch.dtype) -> Task:
        """Read the problem; it is its own model."""
        return Quadratic(self, seed, dtype, data.split_seed(seed))

    def rebuild(
        self,
        model: ModelSection,
        facts: Mapping[str, Any],
        client: int,
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> nn.Module:
        """Return the client's point."""
        from cobo_dist.tasks.point import Point

        return Point(state["x"])


class Quadratic(Task):
    """The quadratic losses of all clients."""

    name = "quadratic"
    metrics: tuple[str, ...] = ("loss",)
    splits: tuple[str, ...] = ("validation", "test")  # the same: there is only f_i
    diagnoses = True
    engines: tuple[str, ...] = tuple(ENGINES)
    batch_size = accumulation = 1  # a batch is the whole problem

    def __init__(
        self, config: QuadraticConfig, seed: int, dtype: torch.dtype, split_seed: int
    ) -> None:
        """Read the problem. A client that moves has the center of a client of its new cluster.

        Raises:
            ConfigError: see `read_problem`.
        """
        if not config.file:
            raise ConfigError(
                "task.file is not set; task quadratic needs a problem.npz with centers [n, d], "
                "curvature [n] and start [d]"
            )
        arrays = read_problem(Path(config.file).expanduser())
        self.noise, self.seed = config.noise, seed
        self.centers_nd, self.curvature_n = arrays["centers"], arrays["curvature"]
        self.clients = len(self.centers_nd)
        self._examples = arrays.get("examples", np.ones(self.clients)).astype(np.int64).tolist()
        self.clusters = _clusters(arrays.get("clusters"), self.centers_nd)
        self._start = torch.from_numpy(arrays["start"]).to(dtype)
        if config.drift and self.clusters is None:
            raise ConfigError(
                f"task.drift moves clients to another cluster, and {self.lack_clusters()}"
            )
        self.drift = drift_of(config.drift, self.clusters or range(self.clients), split_seed)
        self._centers = torch.from_numpy(self.centers_nd).to(dtype)
        self.input_size = self.centers_nd.shape[1]
        self._phase, self.current_nd = 0, self._centers
        """The centers of the round under way."""
        self._curvature = torch.from_numpy(self.curvature_n).to(dtype)

    @property
    def truth(self) -> Truth:
        """Clusters in each round."""
        if self.clusters is None:
            return Truth.constant(None)
        rounds = self.drift.rounds
        clusters = tuple(tuple(self.drift.clusters(r).tolist()) for r in (0, *rounds))
        return Truth(clusters, (None,) * len(clusters), rounds)

    def begin_round(self, r: int) -> None:
        """Give clients that move their new centers."""
        phase = self.drift.phase(r)
        if phase != self._phase:
            self._phase = phase
            self.current_nd = self._centers[torch.from_numpy(self.drift.donors(r))]

    def model(self) -> nn.Module:
        """Return a point at x^0."""
        from cobo_dist.tasks.point import Point

        return Point(self._start)

    def start(self, variant: int = 0) -> dict[str, Tensor]:
        """Return x^0 = start, or start plus a standard normal step."""
        if not variant:
            return {"x": self._start}
        step = seeds.normals(seeds.key(self.seed, "start variant", variant), len(self._start))
        return {"x": self._start + step.to(self._start)}

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """Return f_i(x); its gradient includes the noise."""
        value: Tensor = model(*batch)
        return value

    def score(self, model: nn.Module, *batch: Tensor) -> dict[str, Tensor]:
        """Return f_i(x)."""
        return {"loss": model(*batch)}

    def train_sizes(self) -> list[int]:
        """Return the file's `examples`: local steps in an epoch, and weight in an average by examples."""
        return list(self._examples)

    def training(self, clients: Sequence[int], device: torch.device) -> QuadraticBatches:
        """Return the problems of these clients, with new noise in each round."""
        return QuadraticBatches(self, list(clients), device)

    def validation(
        self, clients: Sequence[int], device: torch.device, batch_size: int
    ) -> QuadraticBatches:
        """Return the problems of these clients, without noise."""
        source = QuadraticBatches(self, list(clients), device)
        source.noise = 0.0
        return source

    def training_inputs(self, client: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the center as the only input."""
        return self.current_nd[[client]].double().numpy(), np.zeros(1, dtype=np.int64)

    def shared_inputs(self, count: int, device: torch.device) -> Batch:
        """Return none: a model predicts its point."""
        return ()

    def predict(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Return the point, [1, d]."""
        return torch.cat([one.reshape(1, -1) for one in model.parameters()])

    def prediction_shape(self, count: int) -> tuple[int, int]:
        """Return the shape of a point."""
        return 1, self.input_size

    def evaluation(
        self, client: int, split: str, device: torch.device, whole: bool = True
    ) -> Iterable[tuple[int, Batch]]:
        """Return the problem without noise."""
        center, curvature = self.current_nd[client], self._curvature[client]
        batch = (center, curvature, torch.zeros_like(center))
        return [(1, tuple(to_device(part, device) for part in batch))]

    def diagnose(self, x_nd: NDArray[np.floating], r: int) -> dict[str, float]:
        """Return Theorem 1's two quantities at the models of all clients [n, d] after round r.

        `consensus_distance`: mean of ||x_i - x_j||^2 over pairs within clusters (0 if no cluster has two
        clients). `gradient_norm`: mean of ||grad f_i(x_i)||^2 over clients.
        """
        gradients = self.curvature_n[:, None] * (x_nd - self.centers_nd[self.drift.donors(r)])
        total, pairs = 0.0, 0
        labels = self.drift.clusters(r)
        for cluster in np.unique(labels):
            members = x_nd[labels == cluster]
            size = len(members)
            # sum over pairs i<j of ||x_i - x_j||^2 = size * sum_i ||x_i - mean||^2
            total += size * float(np.square(members - members.mean(axis=0)).sum())
            pairs += size * (size - 1) // 2
        return {
            "consensus_distance": total / pairs if pairs else 0.0,
            "gradient_norm": float(np.square(gradients).sum(axis=1).mean()),
        }

    def describe(self) -> dict[str, str]:
        """Return the size of the model, and who moves."""
        moves = {"drift": self.drift.to_text()} if self.drift.rounds else {}
        return super().describe() | moves

    def data_in_memory(self) -> tuple[str, int]:
        """Return the bytes of the centers, as they were read and in run.dtype."""
        return "data, once", 2 * int(self.centers_nd.nbytes)

    def lack_clusters(self) -> str:
        """Say why `clusters` is None, and what helps."""
        return "in task.file no two clients share a centre; add the array clusters [n] to the file"

    def fingerprint(self) -> str:
        """Return a digest of the problem."""
        parts = [self.centers_nd, self.curvature_n, self._start.double().numpy()]
        if set(self._examples) != {1}:
            parts.append(np.array(self._examples, dtype=np.float64))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


class QuadraticBatches:
    """Batches of quadratic clients: the problem of each client and the noise of the round."""

    def __init__(self, task: Quadratic, clients: list[int], device: torch.device) -> None:
        self.noise, self.seed, self.clients = task.noise, task.seed, clients
        self._task, self._centers, self._device = task, task.current_nd, device
        self.centers_cd = task.current_nd[clients].to(device)
        self.curvature_c = task._curvature[clients].to(device)
        self.no_noise_cd = torch.zeros_like(self.centers_cd)

    def batch(
        self, t: int, stream: str, rows: Tensor | None = None, part: int | None = None
    ) -> Batch:
        """Return centers [m, d], curvatures [m] and noise [m, d] of batch t, or of that part of epoch t."""
        if self._centers is not self._task.current_nd:
            self._centers = self._task.current_nd
            self.centers_cd = self._centers[self.clients].to(self._device)
        noise_cd = self._noise(number_of(t, part), stream) if self.noise else self.no_noise_cd
        if rows is None:
            return self.centers_cd, self.curvature_c, noise_cd
        rows = to_device(rows, self.centers_cd.device)
        return self.centers_cd[rows], self.curvature_c[rows], noise_cd[rows]

    def _noise(self, t: int, stream: str) -> Tensor:
        size = self.centers_cd.shape[1]
        drawn = [
            seeds.normals(seeds.key(self.seed, f"noise {stream}", t, client), size)
            for client in self.clients
        ]
        return (self.noise * torch.stack(drawn)).to(self.centers_cd)


def read_problem(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the arrays of a problem file as float64, shapes checked.

    Raises:
        ConfigError: the file is missing or no npz, lacks an array, or has wrong shapes or numbers.
    """
    arrays, _ = read_arrays(path, f"task.file={path}", "write one with numpy.savez")
    shapes = {"centers": 2, "curvature": 1, "start": 1, "clusters": 1, "examples": 1}
    for name, dimensions in shapes.items():
        if name not in arrays:
            if name in ("clusters", "examples"):
                continue
            found = ", ".join(sorted(arrays)) or "nothing"
            raise ConfigError(f"task.file={path} lacks the array {name!r}; it holds {found}")
        if arrays[name].ndim != dimensions or arrays[name].dtype.kind not in "fiu":
            raise ConfigError(
                f"task.file={path}: {name} is {arrays[name].dtype} {list(arrays[name].shape)}, but "
                f"must be numbers in {dimensions} dimension(s)"
            )
        if not arrays[name].size or not np.isfinite(arrays[name]).all():
            raise ConfigError(f"task.file={path}: {name} is empty or holds NaN or infinite numbers")
    n, d = arrays["centers"].shape
    for name, length in (("curvature", n), ("start", d), ("clusters", n), ("examples", n)):
        if name in arrays and arrays[name].shape != (length,):
            raise ConfigError(
                f"task.file={path}: centers is [{n}, {d}], so {name} must be [{length}], not "
                f"{list(arrays[name].shape)}"
            )
    for name in ("clusters", "examples"):
        numbers = arrays.get(name, np.zeros(1))
        least = 0 if name == "examples" else -np.inf
        if (numbers != np.round(numbers)).any() or (numbers < least).any():
            raise ConfigError(
                f"task.file={path}: {name} must be whole numbers, one for each client"
                + ", and at least 0" * (name == "examples")
            )
    if (arrays["curvature"] <= 0).any():
        raise ConfigError(
            f"task.file={path}: curvature must be above 0 (Example 2), and its least is "
            f"{arrays['curvature'].min():g}"
        )
    return {
        name: arrays[name].astype(np.float64) for name in arrays if arrays[name].dtype.kind in "fiu"
    }


def _clusters(
    given: NDArray[np.float64] | None, centers_nd: NDArray[np.float64]
) -> tuple[int, ...] | None:
    """Return the clusters as given, or by equal centers; None if no two centers are equal."""
    if given is not None:
        return tuple(int(cluster) for cluster in given)
    _, labels = np.unique(centers_nd, axis=0, return_inverse=True)
    labels = labels.reshape(-1)
    return (
        tuple(int(label) for label in labels) if len(set(labels.tolist())) < len(labels) else None
    )
