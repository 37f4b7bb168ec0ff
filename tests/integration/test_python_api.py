"""`fit` and `open_run`: runs from Python code, alone, twice in a process, and on the ranks of torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from launching import environment, start
from problems import write_quadratic
from resuming import assert_same
from sklearn.datasets import load_digits
from torch import nn
from vision_data import write_images

import cobo_dist
from cobo_dist import ConfigError, RunFailure
from cobo_dist.config import config_of
from cobo_dist.tasks.registry import build_task
from cobo_dist.tracking.metrics_buffer import MetricsBuffer

SMALL: dict[str, Any] = {
    "run": {"rounds": 12, "eval_every": 4, "log_weights_every": 4, "checkpoint_every": 4},
    "task": {"test_size": 80},
    "model": {"hidden": (8,)},
    "comm": {"deterministic": True},
    "log": {"figures": False, "progress": "none"},
}


def fit(folder: Path, **overrides: Any) -> cobo_dist.Run:
    """Run the small config; keyword `run__rounds` means run.rounds."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return cobo_dist.fit(SMALL, {"run.dir": folder, **dotted})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> cobo_dist.Run:
    """A finished run."""
    return fit(tmp_path_factory.mktemp("done") / "run")


def process_state() -> dict[str, Any]:
    """Return what a run sets in its process."""
    return {
        "environment": dict(os.environ),
        "handlers": [signal.getsignal(one) for one in (2, 15, signal.SIGUSR1)],
        "wakeup": signal.set_wakeup_fd(signal.set_wakeup_fd(-1)),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "connected": torch.distributed.is_initialized(),
        "streams": (sys.stdout, sys.stderr),
    }


def test_importing_the_package_imports_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, cobo_dist; "
        "print(sorted({'torch', 'numpy', 'pydantic', 'pandas'} & sys.modules.keys()), "
        "'fit' in dir(cobo_dist), cobo_dist.__version__)"
    )
    ended = start([sys.executable, "-c", code], tmp_path)
    assert ended.stdout == f"[] True {cobo_dist.__version__}\n", ended.stderr
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = cobo_dist.fitt


def test_the_numbers_are_those_of_the_command(tmp_path: Path) -> None:
    from cobo_dist.cli.train import main

    run = fit(tmp_path / "python")
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(SMALL))
    assert main(["--config", str(config), f"run.dir={tmp_path / 'command'}"]) == 0
    assert_same(run.path, tmp_path / "command")


def test_a_path_a_dict_and_a_config_mean_the_same(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(SMALL))
    runs = [
        cobo_dist.fit(config, overrides)
        for number, config in enumerate((file, str(file), SMALL, config_of(SMALL)))
        for overrides in ([f"run.dir={tmp_path}/{number}", "run.rounds=2"],)
    ]
    for run in runs[1:]:
        assert_same(runs[0].path, run.path)
    assert runs[0].config.run.rounds == 2


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (3, (), "config=3 has type int"),
        ({"run": {"rouds": 3}}, (), "did you mean run.rounds"),
        ({"run": 3}, (), "run=3 must be a group of keys"),
        ("none.yaml", (), "none.yaml does not exist"),
        (None, "run.rounds=3", "is no list of texts"),
        (None, {"run.rounds": "3"}, "write it without quotes"),
        (None, {"run.rounds": 3, "run.rounds.x": 3}, "rounds in run.rounds.x already has a value"),
        (None, {"task.clusters": 9999}, "task.clusters"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    config: Any, overrides: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = process_state()
    with pytest.raises(ConfigError, match=message) as refused:
        cobo_dist.fit(config, overrides)
    assert "\n" not in str(refused.value)
    assert process_state() == before
    assert list(tmp_path.iterdir()) == []


def test_a_process_is_left_as_it_was_and_runs_again(tmp_path: Path) -> None:
    before = process_state()
    first = fit(tmp_path / "first")
    assert process_state() == before
    with pytest.raises(ConfigError, match="already holds a run"):
        fit(tmp_path / "first")
    assert process_state() == before
    with pytest.raises(RunFailure, match="the loss of client"):
        fit(tmp_path / "failed", optimizer__lr=1e14)
    assert process_state() == before
    assert_same(first.path, fit(tmp_path / "second").path)
    assert_same(first.path, fit(tmp_path / "first", run__overwrite=True).path)


def test_a_thread_may_train(tmp_path: Path, done: cobo_dist.Run) -> None:
    """A notebook's kernel or a server may call from any thread, where Python allows no signal handlers."""
    runs: list[cobo_dist.Run] = []
    thread = threading.Thread(target=lambda: runs.append(fit(tmp_path / "run")))
    thread.start()
    thread.join()
    assert_same(runs[0].path, done.path)


def test_what_a_run_holds(done: cobo_dist.Run) -> None:
    run = cobo_dist.open_run(done.path)
    assert run.config.run.rounds == 12
    assert run.status is not None
    assert run.status.exit_code == 0
    assert run.summary is not None
    assert run.summary["rounds"] == 12
    assert run.weight_rounds == [0, 4, 8, 12]
    assert run.W.shape == (8, 8)
    assert np.array_equal(run.W, run.weights(12))
    assert (run.weights(0) == 1).all()
    with pytest.raises(ConfigError, match=r"not logged after round 5; .* has rounds 0, 4, 8, 12"):
        run.weights(5)
    means = run.metrics[run.metrics.client.isna()]
    assert means["round"].tolist() == [0, 4, 8, 12]
    assert means.accuracy.iloc[-1] == run.summary["final"]["accuracy"]
    assert run.rounds["round"].tolist() == list(range(1, 13))
    assert run.clusters().tolist() == [0] * 8
    assert run.clusters(threshold=1.01).tolist() == list(range(8))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; give the run\.dir"):
        cobo_dist.open_run(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"is no run folder: it has no config\.yaml"):
        cobo_dist.open_run(tmp_path)


def test_models_predict_as_the_log_says_without_the_run(done: cobo_dist.Run) -> None:
    """A client knows digits by its cluster's labels; `predict` returns the labels of the data."""
    config = done.config
    task: Any = build_task(config.task, config.model, config.data, 0, torch.float32)
    pixels, digits = load_digits(return_X_y=True)
    assert done.summary is not None
    for client, result in enumerate(done.summary["per_client"]):
        model = done.model(client)
        assert isinstance(model, nn.Module)
        assert not model.training
        test = task.split_of["test"][client].numpy()
        right = (model.predict(pixels[test]).numpy() == digits[test]).mean()
        assert right == pytest.approx(result["accuracy"], abs=1e-12)
        images = pixels[test].reshape(-1, 8, 8)
        assert torch.equal(model.predict(images), model.predict(pixels[test]))
    with pytest.raises(ConfigError, match="has models of clients 0 to 7"):
        done.model(8)
    with pytest.raises(
        ValueError, match=r"inputs have shape \[3, 5\], and this model takes \[m, 64\]"
    ):
        done.model(0).predict(np.zeros((3, 5)))


def test_models_of_images_take_bytes(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images.npz")
    run = cobo_dist.fit(
        {
            "run": {"rounds": 2, "dir": tmp_path / "run"},
            "task": {"name": "cross_silo", "clusters": 2},
            "data": {"file": data, "batch_size": 4},
            "model": {"name": "cnn"},
            "log": SMALL["log"],
        }
    )
    with np.load(data) as arrays:
        x, y = arrays["x_test"], arrays["y_test"]
    assert run.summary is not None
    for result in run.summary["per_client"]:
        right = (run.model(result["client"]).predict(x).numpy() == y).mean()
        assert right == pytest.approx(result["accuracy"], abs=1e-12)
    with pytest.raises(ValueError, match="inputs have shape"):
        run.model(0).predict(x[:, :5])


def test_the_model_of_the_quadratic_task_is_a_point(tmp_path: Path) -> None:
    file = write_quadratic(tmp_path / "problem.npz")
    run = cobo_dist.fit(
        {"task": {"name": "quadratic", "file": file}, "log": SMALL["log"]},
        {"run.rounds": 3, "run.dir": tmp_path / "run", "run.dtype": "float64"},
    )
    x = run.model(6).x  # type: ignore[union-attr]
    assert x.shape == (5,)
    assert x.dtype == torch.float64


def test_an_unfinished_run_is_readable(tmp_path: Path) -> None:
    seen: list[Any] = []
    keep = MetricsBuffer.weights

    def look(self: MetricsBuffer, r: int) -> None:
        keep(self, r)
        if r == 8:
            run = cobo_dist.open_run(tmp_path / "run")
            seen.extend(
                (run.summary, run.status, run.weight_rounds, run.model(3), len(run.metrics))
            )

    with mock.patch.object(MetricsBuffer, "weights", look):
        fit(tmp_path / "run", run__checkpoint_writing="foreground", log__flush_every=1)
    assert seen[:3] == [None, None, [0, 4, 8]]
    assert isinstance(seen[3], nn.Module)
    assert seen[4] >= 18


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint(number: int, done: cobo_dist.Run, tmp_path: Path) -> None:
    keep = MetricsBuffer.round

    def round_with_signal(self: MetricsBuffer, now: int, *rest: Any) -> None:
        keep(self, now, *rest)
        if now == 6:
            signal.raise_signal(number)
            signal.raise_signal(number)  # what a launcher passes on counts as the same

    before = process_state()
    with (
        mock.patch.object(MetricsBuffer, "round", round_with_signal),
        pytest.raises((KeyboardInterrupt, RunFailure), match="with a checkpoint") as stopped,
    ):
        fit(tmp_path / "run", log__flush_every=1)
    assert (stopped.type is KeyboardInterrupt) == (number == signal.SIGINT)
    assert process_state() == before
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == 75
    assert status["reason"].startswith(f"stopped by {signal.Signals(number).name} after round 6")
    assert_same(fit(tmp_path / "run", run__resume="auto").path, done.path)


def test_a_second_ctrl_c_raises_at_once(tmp_path: Path) -> None:
    keep = MetricsBuffer.round

    def asked_twice(self: MetricsBuffer, now: int, *rest: Any) -> None:
        keep(self, now, *rest)
        if now == 6:
            signal.raise_signal(signal.SIGINT)
            with mock.patch("time.monotonic", return_value=1e12):
                signal.raise_signal(signal.SIGINT)

    with (
        mock.patch.object(MetricsBuffer, "round", asked_twice),
        pytest.raises(KeyboardInterrupt, match="interrupted from the keyboard"),
    ):
        fit(tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == 1


SCRIPT = """
import json, sys
import cobo_dist

small, folder = json.loads(sys.argv[1]), sys.argv[2]
for name in ("first", "second"):
    run = cobo_dist.fit(small, {"run.dir": f"{folder}/{name}"})
    assert run.summary["ranks"] == 2 and run.W.shape == (8, 8)
    run.model(7)
try:
    cobo_dist.fit(small, {"run.dir": f"{folder}/first", "task.clusters": 9999})
except cobo_dist.ConfigError as error:
    sys.stdout.write(f"refused: {error}\\n")  # in one piece: torchrun's workers do not buffer
cobo_dist.fit(small, {"run.dir": f"{folder}/first", "run.overwrite": True, "run.rounds": 8})
"""


def test_the_ranks_of_torchrun_train_together_and_again(
    done: cobo_dist.Run, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = start(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         str(script), json.dumps(SMALL), str(tmp_path)], tmp_path, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("refused: ") == 2
    assert_same(tmp_path / "second", done.path)
    assert json.loads((tmp_path / "first" / "summary.json").read_text())["rounds"] == 8


@pytest.mark.parametrize(
    "launcher", [[], ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]]
)
def test_ctrl_c_in_a_terminal_saves_a_checkpoint(launcher: list[str], tmp_path: Path) -> None:
    """Torchrun passes Ctrl-C on to its workers, so they may see it twice."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, "cobo_dist.train", "run.rounds=1000000", "run.eval_every=0",
         "log.progress=none", "log.figures=false", f"run.dir={folder}"],
        env=environment(), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        wait_for_rows(folder / "metrics.jsonl", process)
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    finally:
        process.kill()
    status = json.loads((folder / "status.json").read_text())
    assert status["exit_code"] == 75
    assert "stopped by SIGINT" in status["reason"]
    assert code == 75 or launcher
    assert list((folder / "checkpoints").glob("round-?????????"))


def wait_for_rows(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a round is logged."""
    ended = threading.Event()
    for _ in range(600):
        if path.exists() and '"round", "round"' in path.read_text().replace(
            '"event": ', '"round", '
        ):
            return
        assert process.poll() is None, "the run ended"
        ended.wait(0.1)
    raise AssertionError("no round within 60 s")
