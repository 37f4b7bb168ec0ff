"""The config files: each loads, says its own command, and differs from its fellows where it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pfllib
import pytest

from cobo_dist.algorithms.algorithm import RunSettings
from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.cli.plan import main as plan
from cobo_dist.config import Config, load_config
from cobo_dist.errors import ConfigError

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


def _step(config: Config) -> dict[str, object]:
    return {"name": config.optimizer.name, "lr": config.optimizer.lr}


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
                "optimizer": config.optimizer.model_copy(update=_step(rows["cobo"])),
            }
        )
        assert same == rows["cobo"]


@pytest.mark.parametrize("size", ["paper", "cpu"])
@pytest.mark.parametrize("strategy", ["time", "mixed", "all"])
def test_table_1_differs_in_sampling_alone(size: str, strategy: str) -> None:
    constant, other = load(f"{size}/cross_silo_cobo"), load(f"{size}/table1_{strategy}")
    assert other.algorithm.sampling.name == strategy
    algorithm = other.algorithm.model_copy(update={"sampling": constant.algorithm.sampling})
    assert other.model_copy(update={"algorithm": algorithm}) == constant


LANGUAGE: dict[str, dict[str, object]] = {
    "local": {}, "fedavg": {}, "finetuned_fedavg": {}, "ditto": {"lambda_": 0.1},
    "validation_based": {"score": "loss"}, "validation_perplexity": {"score": "perplexity"},
}  # fmt: skip


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_rows_differ_in_method_alone(name: str) -> None:
    cobo, row = load("paper/language"), load(f"paper/language_{name}")
    assert row.algorithm.name == name.replace("_perplexity", "_based")
    assert {key: getattr(row.algorithm, key) for key in LANGUAGE[name]} == LANGUAGE[name]
    assert row.model_copy(update={"algorithm": cobo.algorithm}) == cobo


PAPER = [path for path in FILES if path.parent.name == "paper"]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_header_names_what_the_settings_leave_out(path: Path) -> None:
    """Augmentation, dropout, type of the numbers, and how the tokens are split, as the config has them."""
    config = load(f"paper/{path.stem}")
    head = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    text = " ".join(head)
    if config.task.name == "language":
        train = 1 - config.task.validation_fraction - config.task.test_fraction
        held_out = config.task.tokens * config.task.test_fraction
        assert f"{config.task.tokens * train:,.0f} for training" in text
        assert f"{held_out:,.0f} for validation and {held_out:,.0f} for test" in text
        assert f"Dropout {config.model.lora_dropout:g} is that of the adapters" in text
        assert f"{config.run.autocast} autocast" in text
    else:
        assert ("cropped at random" in text) == config.data.augment
        assert f"{config.model.dropout:g} of the features before the classifier" in text
        assert f"All is in {config.run.dtype}" in text
        assert config.run.autocast == "none"


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides with data, and models, that are small: 4,000 images of 100 classes, and four texts."""
    root = tmp_path_factory.mktemp("small")
    labels = np.tile(np.arange(100), 40)
    images = np.zeros((len(labels), 32, 32, 3), np.uint8)
    arrays = {
        "x_train": images,
        "y_train": labels,
        "x_test": images[:1000],
        "y_test": labels[:1000],
    }
    np.savez_compressed(root / "images.npz", **arrays)
    for name in ("ca", "es", "de", "nl"):
        (root / f"{name}.txt").write_text("a line of text\n" * 2000)
    return (str(root / "images.npz"), str(root))


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_every_run_of_the_paper_can_be_planned(
    path: Path, small_data: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    images, texts = small_data
    more = [f"data.file={images}", "model.width=4"]
    if path.stem.startswith("language"):
        more = ["model.name=tiny-gpt2", f"data.text_dir={texts}", f"data.root={texts}/cache"]
    assert plan(["--config", str(path), "ranks=2", *more]) == 0
    assert "MB" in capsys.readouterr().out


def test_the_papers_numbers() -> None:
    """Batch 128; 40,000 and 20,000 rounds; lr 0.1 for Ditto, 0.05 for FC, 0.01 for all others.

    A gradient moves a model by 0.1 times itself in all, by 0.05 with FC: a step that is scaled by momentum
    would also change the weight of Ditto's lambda, whose pull has none.
    """
    steps = {"ditto": 0.1, "federated_clustering": 0.05}
    for task, rounds in (("cross_silo", 40_000), ("cross_device", 20_000)):
        for name in METHODS + (("federated_clustering",) if task == "cross_silo" else ()):
            config = load(f"paper/{task}_{name}")
            assert (config.run.rounds, config.data.batch_size) == (rounds, 128)
            assert (config.model.name, config.model.width) == ("resnet9", 64)
            optimizer = config.optimizer
            assert (optimizer.lr, optimizer.momentum) == (steps.get(name, 0.01), 0.9)
            averaged = optimizer.name == "ema_momentum"
            total = optimizer.lr * (1 if averaged else 1 / (1 - optimizer.momentum))
            assert total == pytest.approx(steps.get(name, 0.1))
    assert load("paper/cross_device_ifca").algorithm.client_share == 0.1
    assert load("paper/cross_silo_ifca").algorithm.client_share == 1.0
    assert load("paper/cross_silo_ditto").algorithm.lambda_ == 1.0
    cobo = load("paper/cross_silo_cobo").algorithm
    assert (cobo.start, cobo.alignment, cobo.order) == ("ones", "inner", "weights_first")


PFLLIB = [path for path in FILES if path.parent.name == "pfllib"]


def why_refused(path: Path, overrides: list[str]) -> str:
    """Return why a method does not start with PFLlib's settings; empty if it does."""
    try:
        config = load_config(str(path), overrides)
    except ConfigError as error:
        return str(error)
    local, optimizer = config.local, config.optimizer
    unsuited = config.algorithm.unsuited(
        RunSettings(
            clients=20, lr=optimizer.lr, optimizer=optimizer.name, momentum=optimizer.momentum,
            work_key="local.epochs" if local.epochs else "local.steps",
            work=local.epochs or local.steps, most_steps=250 if local.epochs else local.steps,
            clip_norm=local.clip_norm, taking_part=20,
        )
    )  # fmt: skip
    if config.algorithm.needs_validation and not config.task.validation_fraction:
        return "needs validation data"
    return unsuited


@pytest.mark.parametrize("path", PFLLIB, ids=lambda path: path.stem)
def test_a_header_names_the_settings_of_methods_that_would_be_refused(path: Path) -> None:
    """And with these settings they start."""
    lines = [line[1:].split() for line in path.read_text().splitlines() if line[:3] == "#  "]
    named = {line[0].split("=")[1]: line for line in lines if line[0].startswith("algorithm.name=")}
    refused = {name for name in ALGORITHMS if why_refused(path, [f"algorithm.name={name}"])}
    assert refused
    assert set(named) == refused | {"fedbabu"}
    assert {name: tuple(given[1:]) for name, given in named.items()} == pfllib.SETTINGS
    assert {name: why for name, given in named.items() if (why := why_refused(path, given))} == {}
