"""The config files: each loads, says its own command, and differs from its fellows where it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from cobo_dist.config import Config, load_config

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))
METHODS = ("local", "fedavg", "finetuned_fedavg", "ditto", "ifca", "cobo", "oracle")


def load(place: str) -> Config:
    return load_config(str(FOLDER / f"{place}.yaml"), [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_file_loads_and_is_headed_by_its_command(path: Path) -> None:
    load_config(str(path), [])
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config configs/{path.relative_to(FOLDER)}" in line for line in head[:2])
    assert len(head) >= 4, "a command and the arithmetic"


@pytest.mark.parametrize("size", ["paper", "cpu"])
@pytest.mark.parametrize("task", ["cross_silo", "cross_device"])
def test_the_rows_of_a_table_differ_in_method_and_step_alone(size: str, task: str) -> None:
    methods = METHODS + (("federated_clustering",) if task == "cross_silo" else ())
    rows = {name: load(f"{size}/{task}_{name}") for name in methods}
    for name, config in rows.items():
        assert config.algorithm.name == name
        assert config.task.name == task
        same = config.model_copy(
            update={
                "algorithm": rows["cobo"].algorithm,
                "optimizer": config.optimizer.model_copy(update={"lr": rows["cobo"].optimizer.lr}),
            }
        )
        assert same == rows["cobo"]


@pytest.mark.parametrize("strategy", ["time", "mixed", "all"])
def test_table_1_differs_in_sampling_alone(strategy: str) -> None:
    constant, other = load("cpu/cross_silo_cobo"), load(f"cpu/table1_{strategy}")
    assert other.algorithm.sampling.name == strategy
    algorithm = other.algorithm.model_copy(update={"sampling": constant.algorithm.sampling})
    assert other.model_copy(update={"algorithm": algorithm}) == constant


def test_the_papers_numbers() -> None:
    """Batch 128; 40,000 and 20,000 rounds; lr 0.1 for Ditto, 0.05 for FC, 0.01 for all others."""
    steps = {"ditto": 0.1, "federated_clustering": 0.05}
    for task, rounds in (("cross_silo", 40_000), ("cross_device", 20_000)):
        for name in METHODS + (("federated_clustering",) if task == "cross_silo" else ()):
            config = load(f"paper/{task}_{name}")
            assert (config.run.rounds, config.data.batch_size) == (rounds, 128)
            assert (config.model.name, config.model.width) == ("resnet9", 64)
            assert config.optimizer.lr == steps.get(name, 0.01)
    assert load("paper/cross_device_ifca").algorithm.client_share == 0.1
    assert load("paper/cross_silo_ifca").algorithm.client_share == 1.0
    assert load("paper/cross_silo_ditto").algorithm.lambda_ == 1.0
    cobo = load("paper/cross_silo_cobo").algorithm
    assert (cobo.start, cobo.alignment, cobo.order) == ("ones", "inner", "weights_first")
