"""What clients show of their data and of their models, for real examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.clients.optimizer_config import OptimizerConfig
from cobo_dist.clients.signatures import PredictionLayout
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.preparation import refuse_unfit

CPU = torch.device("cpu")


def clients_of(*arguments: str) -> tuple[Any, ClientBatch]:
    config = load_config(None, ["run.device=cpu", *arguments])
    task: Any = build_task(config.task, config.model, config.data, 0, torch.float32)
    ids = range(task.clients)
    return task, ClientBatch(ids, task, OptimizerConfig(), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("angle", ["smallest", "mean"])
@pytest.mark.parametrize("by_class", [True, False])
def test_angles_are_those_of_the_singular_vectors_of_images(by_class: bool, angle: Any) -> None:
    task, clients = clients_of("task.validation_fraction=0.1")
    shown = clients.input_signatures(2, by_class, angle)
    spaces = []
    for client in clients.ids:
        inputs, labels = task.training_inputs(client)
        groups = labels if by_class else 0 * labels
        spaces.append(np.concatenate([
            np.linalg.svd(inputs[groups == g], full_matrices=False)[2][:2].T for g in np.unique(groups)
        ], axis=1))  # fmt: skip
    expected = [[np.degrees(subspace_angles(a, b)) for b in spaces] for a in spaces]
    reduced = np.array([[getattr(one, "min" if angle == "smallest" else "mean")() for one in row]
                        for row in expected])  # fmt: skip
    np.testing.assert_allclose(shown.distances(shown.rows_cs), reduced, atol=0.1)
    assert shown.rows_cs.shape == (8, 64 * min(64, 2 * (10 if by_class else 1)))


def test_inputs_tell_clients_with_other_classes_apart() -> None:
    """Clients 2k and 2k + 1 have the same classes."""
    given = ["task.name=classification", "task.source.name=sklearn", "task.source.set=digits",
             "task.partition.name=pfllib_pathological", "task.partition.clients=4",
             "task.partition.classes_per_client=5"]  # fmt: skip
    task, clients = clients_of(*given)
    labels = [set(task.training_inputs(client)[1].tolist()) for client in clients.ids]
    distances = clients.input_signatures(3, True, "mean")
    found = distances.distances(distances.rows_cs)
    same = np.array([[one == other for other in labels] for one in labels])
    assert same.sum() == 8
    off = ~np.eye(4, dtype=bool)
    assert found[same & off].max() < found[~same].min()


def test_predictions_are_the_models_own_on_shared_images() -> None:
    task, clients = clients_of("task.validation_fraction=0.2")
    clients.x_cd += torch.randn(clients.x_cd.shape, generator=torch.Generator().manual_seed(0))
    shown = clients.prediction_signatures(20, 4)
    (inputs,) = task.shared_inputs(20, CPU)
    logits = torch.zeros(8, 20, 10)
    for client in clients.ids:
        clients.layout.views(clients.x_cd[client])
        model = task.model()
        state = clients.layout.views(clients.x_cd[client])
        model.load_state_dict({**model.state_dict(), **state})
        largest = model.eval()(inputs).topk(4, dim=1)
        logits[client].scatter_(1, largest.indices, largest.values.detach())
    expected = (logits[:, None] - logits[None]).double().abs().sum(dim=(2, 3))
    np.testing.assert_allclose(shown.distances(shown.rows_cs), expected, rtol=1e-5)
    assert shown.rows_cs.shape == (8, 20 * 4 * 2)


@pytest.mark.parametrize(("outputs", "digits"), [(7, 1), (256, 1), (257, 2), (70_000, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_of_many_classes_survive_a_short_type(
    outputs: int, digits: int, dtype: torch.dtype
) -> None:
    layout = PredictionLayout(2, outputs, 3)
    predictions = torch.zeros(2, outputs)
    predictions[0, [0, 3, outputs - 1]] = torch.tensor([1.0, 4.0, -2.0]) + 8
    predictions[1, [1, 2, outputs - 2]] = torch.tensor([0.5, 2.0, 1.0])
    row = layout.row(predictions).to(dtype)
    assert len(row) == 2 * 3 * (1 + digits)
    dense = torch.cat(list(layout.dense(row[None])), dim=1)
    assert torch.equal(dense.view(2, outputs), predictions.double())


def test_shared_inputs_are_of_all_clients_in_turn() -> None:
    task, _ = clients_of("task.validation_fraction=0.1")
    (few,), (every,) = task.shared_inputs(8, CPU), task.shared_inputs(10_000, CPU)
    assert task.prediction_shape(10_000) == (len(every), 10)
    assert torch.equal(few, every[:8])
    assert len(torch.unique(every, dim=0)) == len(every)


@pytest.mark.parametrize(
    ("name", "lacks", "words"),
    [
        ("pacfl", {"input_size": 0}, "compares inputs as vectors"),
        (
            "prediction_based",
            {"prediction_shape": lambda count: (0, 0)},
            "has none; give its class",
        ),
    ],
)
def test_a_task_that_lacks_them_is_refused_in_one_line(
    name: str, lacks: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, [f"algorithm.name={name}"])
    task: Any = build_task(config.task, config.model, config.data, 0, torch.float32)
    for attribute, value in lacks.items():
        monkeypatch.setattr(task, attribute, value)
    with pytest.raises(ConfigError, match=words) as refused:
        refuse_unfit(config, task)
    assert "\n" not in str(refused.value)
