"""Which models a run leaves (`run.keep`), and which it starts from (`run.init_from`)."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import QUIET, models, rows, train, write_texts
from resuming import assert_same, stopped
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import cobo_dist
from cobo_dist.cli.report import main as report
from cobo_dist.cli.train import main
from cobo_dist.maths import seeds
from cobo_dist.tasks.registry import build_task

SMALL = [
    "run.rounds=24", "run.eval_every=3", "run.log_weights_every=8", "run.checkpoint_every=8",
    "run.eval_splits=[validation,test]", "task.test_size=80", "model.hidden=[8]", "model.norm=batch",
    "data.batch_size=8", "optimizer.lr=0.3", "comm.deterministic=true",
]  # fmt: skip
LANGUAGE = [
    "task.name=language", "model.name=tiny-gpt2", "task.context=16", "task.tokens=2000",
    "data.batch_size=2", "run.rounds=2", "task.languages=[x, y, z]",
]  # fmt: skip


def run_of(folder: Path, *more: str) -> cobo_dist.Run:
    """Train the small config with more arguments."""
    assert main([*QUIET, *SMALL, f"run.dir={folder}", *more]) == 0
    return cobo_dist.open_run(folder)


def whole_models(folder: Path) -> np.ndarray:
    """Return all parameters of each client's final model [n, d]."""
    found = []
    for path in sorted((folder / "models").glob("*.safetensors")):
        state = load_file(path)
        names = [name for name in sorted(state) if "running" not in name and "num_" not in name]
        found.append(np.concatenate([state[name].numpy().ravel() for name in names]))
    return np.stack(found)


def accuracies(run: cobo_dist.Run) -> list[float]:
    """Return each client's accuracy on its test data, by the saved model."""
    config = run.config
    task: Any = build_task(config.task, config.model, config.data, 0, torch.float32)
    pixels, digits = load_digits(return_X_y=True)
    found = []
    for client in range(8):
        test = task.split_of["test"][client].numpy()
        model: Any = run.model(client)
        found.append(float((model.predict(pixels[test]).numpy() == digits[test]).mean()))
    return found


def test_best_keeps_each_clients_model_with_the_least_validation_loss(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "run.keep=best")
    summary: Any = run.summary
    assert summary["keep"] == "best"
    table = run.metrics[run.metrics.client.notna() & (run.metrics.model == "personal")]
    for client, kept in enumerate(summary["per_client"]):
        losses = table[(table.client == client) & (table.split == "validation")]
        best = losses.loc[losses.loss.idxmin(), "round"]
        assert kept["round"] == best
        tests = table[(table.client == client) & (table.split == "test") & (table["round"] == best)]
        assert kept["accuracy"] == tests.accuracy.item()
    assert accuracies(run) == pytest.approx([one["accuracy"] for one in summary["per_client"]])
    assert any(one["round"] < 24 for one in summary["per_client"]), "the last are not all the best"


@pytest.mark.parametrize("keep", ["best", "uniform"])
def test_keeping_changes_neither_training_nor_w(keep: str, tmp_path: Path) -> None:
    kept, last = run_of(tmp_path / "kept", f"run.keep={keep}"), run_of(tmp_path / "last")
    assert np.array_equal(kept.W, last.W)
    assert kept.rounds.loss.tolist() == last.rounds.loss.tolist()
    summary: Any = last.summary
    assert summary["keep"] == "last"
    assert {one["round"] for one in summary["per_client"]} == {24}


@pytest.mark.parametrize("keep", ["best", "uniform"])
@pytest.mark.parametrize(
    "more",
    [
        (),
        (
            "comm.placement=adaptive",
            "comm.placement_every=2",
            "algorithm.name=oracle",
            "task.order=shuffled",
        ),
    ],
)
def test_a_kept_model_survives_a_stop_and_other_ranks(
    keep: str, more: tuple[str, ...], pool: RankPool, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = [*SMALL, *more, f"run.keep={keep}", "log.flush_every=1", "run.resume=auto"]
    assert main([*QUIET, *arguments, f"run.dir={whole}"]) == 0
    mine = [*arguments, f"run.dir={parts}"]
    assert pool.run(3, stopped, mine, 1, 17, signal.SIGTERM) == [75, 75, 75]
    assert pool.run(2, train, mine) == [0, 0]
    if more:  # rows about placement differ
        assert rows(parts, "placement"), "clients moved"
        before, after = models(whole), models(parts)
        assert all(np.array_equal(before[name], after[name]) for name in before)
    else:
        assert_same(whole, parts)
    results = [
        json.loads((one / "summary.json").read_text())["per_client"] for one in (whole, parts)
    ]
    assert results[0] == results[1]


def test_a_run_that_stops_early_keeps_its_best(tmp_path: Path) -> None:
    early = "callbacks=[{name: early_stopping, patience: 1, min_delta: 0.05}]"
    run = run_of(tmp_path / "run", "run.keep=best", early)
    summary: Any = run.summary
    assert summary["rounds"] < 24
    assert accuracies(run) == pytest.approx([one["accuracy"] for one in summary["per_client"]])


def test_uniform_leaves_the_models_of_one_round(tmp_path: Path) -> None:
    """Those that a run of so many rounds leaves."""
    run = run_of(tmp_path / "run", "run.keep=uniform")
    summary: Any = run.summary
    (r,) = {one["round"] for one in summary["per_client"]}
    assert 1 <= r <= 24
    shorter = run_of(tmp_path / "shorter", f"run.rounds={r}")
    kept = models(run.path)
    assert all(np.array_equal(kept[name], value) for name, value in models(shorter.path).items())


def test_the_round_is_drawn_uniformly() -> None:
    """Round r replaces what is kept with probability 1/r, so each of T rounds remains with 1/T."""
    kept = []
    for seed in range(2000):
        last = 0
        for r in range(1, 6):
            if float(seeds.uniforms(seeds.key(seed, "kept round", r), 1)) * r < 1.0:
                last = r
        kept.append(last)
    assert np.bincount(kept, minlength=6)[0] == 0
    assert np.bincount(kept, minlength=6)[1:] == pytest.approx(np.full(5, 400), abs=80)


def test_the_report_says_which_models_the_finals_are_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path / "run", "run.keep=best")
    shown = capsys.readouterr().out
    assert "models kept (best)" in shown
    assert report([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    shown = "".join(capsys.readouterr())
    assert "final metrics are of the kept models (run.keep=best)" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.keep=best", "run.eval_splits=[test]"], "lacks validation; set run.eval_splits="),
        (["run.keep=best", "data.eval_examples=5"], "evaluates a part; set data.eval_examples=0"),
        (["run.keep=first"], "is none of last, best, uniform"),
        (["run.init_from=none"], "run.init_from=none is no folder"),
        (["run.init_from=."], "has neither saved models nor a checkpoint"),
    ],
)
def test_what_cannot_be_kept_or_read_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*QUIET, *SMALL, "run.dir=run", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


# -- run.init_from -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("source") / "run"
    return run_of(folder).path


@pytest.mark.parametrize("where", ["", "checkpoints/round-000000016"])
def test_a_run_starts_from_another_runs_models(where: str, source: Path, tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "run", f"run.init_from={source / where}", "algorithm.name=fedavg", "run.rounds=0"
    )
    given, taken = models(source), models(run.path)
    same = [np.array_equal(given[name], value) for name, value in taken.items()]
    assert all(same) if not where else not all(same)
    environment = json.loads((run.path / "env.json").read_text())
    assert Path(environment["init_from"]["path"]) == source / (where or "models")


def test_an_unfinished_run_gives_its_newest_checkpoint(source: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(source, unfinished)
    for name in ("summary.json", "status.json"):
        (unfinished / name).unlink()
    shutil.rmtree(unfinished / "models")
    run = run_of(tmp_path / "run", f"run.init_from={unfinished}", "run.rounds=0")
    given, taken = models(source), models(run.path)
    assert all(np.array_equal(given[name], value) for name, value in taken.items())


@pytest.mark.parametrize("name", ["cobo", "ditto", "ifca"])
def test_a_run_that_began_from_models_goes_on_without_them(
    name: str, source: Path, pool: RankPool, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(source, gone)
    arguments = [*SMALL, f"algorithm.name={name}", f"run.init_from={gone}", "run.resume=auto"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*QUIET, *arguments, f"run.dir={whole}"]) == 0
    mine = [*arguments, "log.flush_every=1", f"run.dir={parts}"]
    assert pool.run(2, stopped, mine, 1, 10, signal.SIGTERM) == [75, 75]
    shutil.rmtree(gone)
    assert pool.run(2, train, mine) == [0, 0]
    assert_same(whole, parts)
    recorded = [json.loads((one / "env.json").read_text())["init_from"] for one in (whole, parts)]
    assert recorded[0]["path"] == recorded[1]["path"]


@pytest.mark.parametrize("name", ["ditto", "ifca"])
def test_models_beside_the_clients_start_from_another_runs_too(
    name: str, pool: RankPool, tmp_path: Path
) -> None:
    """Ditto's global model is their mean, IFCA's centers are some of them, on any number of ranks."""
    source = run_of(tmp_path / "source", "run.rounds=60", "algorithm.name=local").path
    given = whole_models(source)
    # Nothing moves: what is saved is where the round began.
    still = [*SMALL, f"algorithm.name={name}", f"run.init_from={source}", "run.rounds=1"]
    saved, found = {"ditto": "v", "ifca": "centers"}[name], []
    for ranks in (1, 2, 3):
        folder = tmp_path / f"on{ranks}"
        given_there = [*QUIET, *still, "optimizer.lr=1e-30", f"run.dir={folder}"]
        assert pool.run(ranks, train, given_there) == [0] * ranks
        state = load_file(folder / "checkpoints/round-000000001/shared.safetensors")
        found.append(state[saved])
        if name == "ifca":  # a client has one of the models that the run began with
            assert all((row == given).all(axis=1).any() for row in whole_models(folder))
    assert all(torch.equal(found[0], one) for one in found)
    start = found[0].numpy()
    if name == "ditto":
        assert abs(np.sort(start[0]) - np.sort(given.mean(axis=0))).max() < 1e-6
    else:
        assert len(np.unique(start, axis=0)) == 4
        assert run_of(tmp_path / "one", *still[len(SMALL) :]).summary["final"]["accuracy"] > 0.4


def test_ifcas_centers_part_where_all_models_are_alike(tmp_path: Path) -> None:
    source = run_of(tmp_path / "source", "algorithm.name=fedavg").path
    run = run_of(tmp_path / "run", "algorithm.name=ifca", f"run.init_from={source}")
    assert len({model.tobytes() for model in models(run.path).values()}) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.hidden=[9]"], "client 0's 1.bias is [8], and this run's is [9]; start from"),
        (["model.norm=none"], "is [8], and this run's is"),
        (["task.clusters=2"], "has models of 8 clients, and this run has 4; start from"),
    ],
)
def test_models_of_another_kind_are_refused(
    arguments: list[str],
    message: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    given = [*QUIET, *SMALL, f"run.init_from={source}", f"run.dir={folder}", *arguments]
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not folder.exists()


@pytest.mark.slow
def test_adapters_are_kept_read_and_started_from(tmp_path: Path) -> None:
    """The saved adapters are a PEFT model in Python, and the start of another run."""
    texts = write_texts(tmp_path / "texts")
    data = [f"data.text_dir={texts}", f"data.root={tmp_path}"]
    first = [*QUIET, *LANGUAGE, *data, f"run.dir={tmp_path / 'first'}"]
    assert main(first) == 0
    second = [*QUIET, *LANGUAGE, *data, f"run.dir={tmp_path / 'second'}", "run.rounds=0"]
    assert main([*second, f"run.init_from={tmp_path / 'first'}"]) == 0
    runs = [cobo_dist.open_run(tmp_path / name) for name in ("first", "second")]
    tokens = torch.arange(12)[None]
    for client in range(3):
        one, other = (run.model(client) for run in runs)
        assert not one.training
        assert torch.equal(one(tokens).logits, other(tokens).logits)
    summaries: Any = [run.summary for run in runs]
    assert summaries[0]["final"] == summaries[1]["final"]
