"""benchmarks/peers.py gives other simulators the start and the batches of cobo_dist."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up import make_images, with_images
from peers.work import Problem, Work, read_result, write_problem, write_result

from cobo_dist.config import load_config
from cobo_dist.tasks.registry import build_task

WORKS = {
    "numbers": Work(("task.clusters=2", "task.clients_per_cluster=2"), 4, 3, 1, False),
    "images": Work(
        ("task.name=cross_silo", "model.width=4", "model.dropout=0", "task.clusters=2",
         "task.clients_per_cluster=2", "data.augment=false"), 4, 3, 1, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WORKS)
def test_peers_get_the_start_and_batches_of_cobo_dist(kind: str, tmp_path: Path) -> None:
    """All of 4 clients' batches of 3 rounds, and how images lie in memory."""
    work, images = WORKS[kind], make_images(tmp_path / "images.npz", 600, 100)
    problem = Problem(write_problem(work, images, work.rounds, tmp_path / "problem.pt"))
    config = load_config(None, with_images(work.settings, images))
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    source = task.training(range(work.clients), torch.device("cpu"))
    assert (problem.rounds, problem.clients) == (work.rounds, work.clients)
    for t in range(work.rounds):
        inputs, targets = source.batch(t, "local")[:2]
        for client in range(work.clients):
            given, labels = problem.batch(t, client)
            assert torch.equal(given, inputs[client])
            assert given.stride() == inputs[client].stride()
            assert torch.equal(labels, targets[client])
    expected = task.model().state_dict()
    found = problem.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    """4 times are 3 rounds."""
    model = {"w": torch.arange(6.0).view(2, 3).T}
    write_result(tmp_path, [1.0, 2.0, 4.0, 4.5], model, {"package": "1.0"})
    seconds, found, versions = read_result(tmp_path)
    assert seconds == [1.0, 2.0, 0.5]
    assert torch.equal(found["w"], model["w"])
    assert versions == {"package": "1.0"}
