"""Task `regression`: targets, units, saved models, engines and algorithms, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cobo_dist.cli.prepare import main as prepare
from cobo_dist.cli.report import main as report
from cobo_dist.cli.train import main
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.results.run import open_run
from cobo_dist.tasks.registry import build_task
from cobo_dist.tasks.regression import Regression

QUICK = [
    "task.name=regression", "run.threads=1", "log.figures=false", "log.progress=none",
    "run.device=cpu",
]  # fmt: skip


def task_of(*given: str) -> Regression:
    config = load_config(None, ["task.name=regression", *given])
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    assert isinstance(task, Regression)
    return task


def refusal(*given: str) -> str:
    with pytest.raises(ConfigError) as caught:
        task_of(*given)
    message = str(caught.value)
    assert "\n" not in message
    return message


def npz(path: Path, outputs: int = 0, **arrays: np.ndarray) -> list[str]:
    """Write 160 examples, linear in three inputs, whose targets lie near 1000."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 3))
    y = 1000 + 50 * x @ rng.normal(size=(3, outputs or 1))
    usual = {"x_train": x, "y_train": y if outputs else y[:, 0], "client": np.arange(160) % 4}
    np.savez(path, **{**usual, **arrays})
    return ["task.source.name=npz", f"task.source.file={path}"]


@pytest.mark.parametrize("outputs", [0, 2])
def test_metrics_and_predictions_are_in_the_data_units(tmp_path: Path, outputs: int) -> None:
    """The saved models' errors on the data's own numbers are those of the summary."""
    given = [*npz(tmp_path / "t.npz", outputs), "task.partition.name=by_column"]
    learn = ["model.hidden=[]", "run.rounds=60", f"run.dir={tmp_path / 'run'}"]
    assert main([*QUICK, *given, *learn]) == 0
    run, task = open_run(tmp_path / "run"), task_of(*given)
    with np.load(tmp_path / "t.npz") as arrays:
        x, y = arrays["x_train"], arrays["y_train"]
    for client, result in enumerate(run.summary["per_client"]):
        own = task.split_of["test"][client].numpy()
        error = run.model(client).predict(x[own]).numpy() - y[own]
        assert result["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
        assert result["mae"] == pytest.approx(np.mean(np.abs(error)), rel=1e-4)
    assert run.summary["final"]["rmse"] < 0.5 * y.std()
    assert "accuracy" not in run.summary["final"]
    facts = json.loads((tmp_path / "run" / "model.json").read_text())
    assert facts["outputs"] == (outputs or 1) == len(facts["target_scale"])
    assert "label_maps" not in facts


def test_targets_are_standardized_by_the_training_examples(tmp_path: Path) -> None:
    task = task_of(*npz(tmp_path / "t.npz", 2), "run.dtype=float64")
    own = task.examples.targets[torch.cat(list(task.split_of["train"]))]
    assert torch.allclose(own.mean(dim=0), torch.zeros(2, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(own.std(dim=0, unbiased=False), torch.ones(2, dtype=torch.float64))
    with np.load(tmp_path / "t.npz") as arrays:
        assert np.allclose(task.in_units(task.examples.targets).numpy(), arrays["y_train"])


def test_partitions_by_label_go_by_quantiles(tmp_path: Path) -> None:
    """Each of five clients has the targets of one fifth, and the files say which."""
    settings = [
        "task.partition.name=disjoint_classes", "task.partition.cluster_sizes=[1,1,1,1,1]",
        "task.bins=5",
    ]  # fmt: skip
    task = task_of(*npz(tmp_path / "t.npz"), *settings)
    every = [torch.cat([those[i] for those in task.split_of.values()]) for i in range(5)]
    ranges = sorted(
        (float(task.examples.targets[own].min()), float(task.examples.targets[own].max()))
        for own in every
    )
    assert all(high < low for (_, high), (low, _) in pairwise(ranges))
    assert all(31 <= len(own) <= 33 for own in every)
    arrays = task.partition()
    assert len(arrays["label_names"]) == 5
    assert (arrays["label"] == arrays["client"]).all()
    tied = task_of(*npz(tmp_path / "t.npz", y_train=np.arange(160) // 150 * 1.0))
    assert sorted(set(tied.labels.tolist())) == list(range(len(tied.label_names)))


ALGORITHMS = (
    "local",
    "fedavg",
    "ditto",
    "ifca",
    "federated_clustering",
    "validation_based",
    "cobo",
)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "finetuned_fedavg", "oracle"])
def test_algorithms_and_engines_agree(tmp_path: Path, algorithm: str) -> None:
    given = [
        *QUICK, *npz(tmp_path / "t.npz"), f"algorithm.name={algorithm}", "run.rounds=4",
        "task.partition.clients=4", "run.dtype=float64", "task.change.name=scale",
    ]  # fmt: skip
    found = []
    for engine in ("one_by_one", "vectorised"):
        folder = tmp_path / engine
        keep = (
            [] if algorithm == "oracle" else ["run.keep=best", "run.eval_splits=[validation,test]"]
        )
        assert main([*given, *keep, f"run.engine={engine}", f"run.dir={folder}"]) == 0
        found.append(open_run(folder).summary["final"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_reports_show_errors_and_no_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for algorithm in ("local", "fedavg"):
        run = [
            f"algorithm.name={algorithm}",
            "run.rounds=4",
            f"run.dir={tmp_path / 'runs' / algorithm}",
        ]
        assert main([*QUICK, *npz(tmp_path / "t.npz"), *run]) == 0
    assert "rmse" in capsys.readouterr().out
    assert (
        report([*map(str, (tmp_path / "runs").iterdir()), "--out", str(tmp_path / "report")]) == 0
    )
    texts = [
        path.read_text().replace("link accuracy", "").replace("link_accuracy", "")
        for path in (tmp_path / "report").iterdir()
        if path.suffix in (".md", ".csv")
    ]
    assert any("| rmse |" in text for text in texts)
    assert not any(word in text for text in texts for word in ("accuracy %", "acc. %", "accuracy_"))


@pytest.mark.parametrize(
    ("arrays", "settings", "expected"),
    [
        ({"y_train": np.array(["a", "b"] * 80)}, [], "<U1, but task.name=regression takes numbers"),
        ({"y_train": np.r_[np.ones(80), np.nan, np.zeros(79)]}, [], "infinite, first of example 81"),
        ({"y_train": np.r_[np.inf, np.zeros(159)]}, [], "NaN or infinite"),
        ({"y_train": np.arange(160) * 1e-300}, [], "there is nothing to predict"),
        ({"y_train": np.full(160, 7)}, [], "to train on are 7; there is nothing to predict"),
        ({"y_train": np.ones((160, 2, 2))}, [], "but must be one label for each of 160 examples, or numbers"),
        ({"y_train": np.arange(160).astype("datetime64[D]")}, [], "targets are datetime64[D]"),
        ({}, ["task.change.name=labels"], "task.change.name=labels renames classes"),
        ({}, ["task.loss=cross_entropy"], "choose huber or l1 or mse"),
        ({}, ["task.metrics=[accuracy]"], "choose mae or rmse"),
    ],
)  # fmt: skip
def test_what_is_no_regression_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], settings: list[str], expected: str
) -> None:
    assert expected in refusal(*npz(tmp_path / "t.npz", **arrays), *settings)


@pytest.mark.parametrize(
    "settings", [["task.loss=mse"], ["task.loss=huber"], ["task.metrics=[rmse]"]]
)
def test_a_loss_of_numbers_is_refused_for_classes(settings: list[str]) -> None:
    config = load_config(None, ["task.name=digits", *settings])
    with pytest.raises(
        ConfigError, match=r"cannot take outputs \[8, 10\] and targets \[8\] of int64"
    ):
        build_task(config.task, config.model, config.data, 0, torch.float32)


def test_several_targets_are_no_classes(tmp_path: Path) -> None:
    config = load_config(None, ["task.name=classification", *npz(tmp_path / "t.npz", 2)])
    with pytest.raises(ConfigError, match=r"there are 2 targets, and task.name=classification"):
        build_task(config.task, config.model, config.data, 0, torch.float32)


def test_the_picture_shows_the_bins(tmp_path: Path) -> None:
    assert prepare(["task.name=regression", "--picture", str(tmp_path / "x.png")]) == 0
    task = task_of()
    counts = pd.read_csv(tmp_path / "x.csv").drop(columns="client").to_numpy()
    assert counts.shape == (8, 10)
    assert counts.sum() == sum(task.train_sizes())
