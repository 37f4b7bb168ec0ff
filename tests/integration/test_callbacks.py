"""Callbacks: they see every round, stop a run on all ranks, and go on where a checkpoint was."""

from __future__ import annotations

import csv
import json
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool import RankPool
from problems import QUIET, models, rows
from resuming import assert_same, stopped

import cobo_dist
from cobo_dist import ConfigError, RunFailure
from cobo_dist.callbacks.callback import Callback
from cobo_dist.callbacks.early_stopping import EarlyStopping
from cobo_dist.cli.train import main
from cobo_dist.comm.session import Session
from cobo_dist.config import load_config
from cobo_dist.registry import register
from cobo_dist.training.run import run_in_session

SMALL = [
    "run.rounds=24", "run.eval_every=4", "run.log_weights_every=8", "run.checkpoint_every=8",
    "run.eval_splits=[validation,test]", "task.test_size=80", "model.hidden=[8]",
    "data.batch_size=8", "comm.deterministic=true",
]  # fmt: skip
# Two evaluations after the best one, the run stops.
EARLY = "callbacks=[{name: early_stopping, patience: 2, min_delta: 0.05}]"


class Seen(Callback):
    """Notes what it sees; asks to stop, or raises, after one round."""

    def __init__(self, stop: int = 0, fail: str = "") -> None:
        super().__init__()
        self.stop, self.fail, self.calls = stop, fail, list[Any]()

    def begin(self, run: cobo_dist.Run) -> None:
        self.calls.append("begin")
        if self.fail == "begin":
            raise ValueError("no\nbeginning")

    def after_round(self, r: int, metrics: Any) -> bool | None:
        self.calls.append((r, metrics))
        if self.fail == "round" and r == 5:
            raise ValueError("no round")
        return r == self.stop

    def end(self, run: cobo_dist.Run) -> None:
        self.calls.append(("end", run.summary is not None))
        if self.fail == "end":
            raise ValueError("no end")


def fit(folder: Path, *callbacks: Callback, more: Any = ()) -> cobo_dist.Run:
    """Run the small config with callbacks."""
    return cobo_dist.fit(None, [*QUIET, *SMALL, f"run.dir={folder}", *more], callbacks)


def test_a_callback_sees_every_round_with_its_metrics(tmp_path: Path) -> None:
    seen = Seen()
    run = fit(tmp_path / "run", seen)
    first, *each, last = seen.calls
    assert (first, last) == ("begin", ("end", True))
    assert [r for r, _ in each] == list(range(1, 25))
    for r, metrics in each:
        assert metrics["loss"] == run.rounds.set_index("round").loss[r]
        assert ("test/accuracy" in metrics) == (r % 4 == 0)
    means = run.metrics[run.metrics.client.isna() & (run.metrics.split == "validation")]
    assert [m["validation/loss"] for r, m in each if r % 4 == 0] == means.loss.tolist()[1:]


@pytest.mark.parametrize("stops_after", ["rounds", "evaluations", "none"])
def test_a_run_without_and_with_callbacks_gives_the_same_numbers(
    stops_after: str, tmp_path: Path
) -> None:
    seen = Seen()
    seen.stops_after = stops_after  # type: ignore[misc, assignment]
    assert_same(fit(tmp_path / "with", seen).path, fit(tmp_path / "without").path)
    assert len(seen.calls) == 26


def stop_at_7(session: Session, folder: Path) -> tuple[int, int]:
    """Train with a callback that stops the run after round 7; return the exit code and its calls."""
    seen = Seen(stop=7)
    config = load_config(None, [*QUIET, *SMALL, f"run.dir={folder}"])
    outcome = run_in_session(config, session, callbacks=[seen])
    return outcome.code, len(seen.calls)


def test_a_callback_stops_the_run_on_all_ranks(pool: RankPool, tmp_path: Path) -> None:
    """It ends like a run of 7 rounds."""
    folder = tmp_path / "run"
    assert pool.run(2, stop_at_7, folder) == [(0, 9), (0, 0)]
    shorter = fit(tmp_path / "shorter", more=["run.rounds=7"])
    assert_same_results(cobo_dist.open_run(folder), shorter)
    status = json.loads((folder / "status.json").read_text())
    assert status == {
        "exit_code": 0,
        "status": "done",
        "reason": "stopped early at round 7 by Seen",
    }


def assert_same_results(one: cobo_dist.Run, other: cobo_dist.Run) -> None:
    """Compare models, W, evaluations and summary, bit by bit."""
    mine, theirs = models(one.path), models(other.path)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(value, theirs[name]) for name, value in mine.items())
    assert one.weight_rounds == other.weight_rounds
    assert np.array_equal(one.W, other.W)
    assert rows(one.path, "eval") == rows(other.path, "eval")
    assert one.summary is not None
    assert other.summary is not None
    assert one.summary["rounds"] == other.summary["rounds"]
    assert one.summary["final"] == other.summary["final"]


def test_a_run_that_was_stopped_early_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(tmp_path / "run", Seen(stop=7))
    before = (run.path / "metrics.jsonl").read_bytes()
    for more in (["run.resume=auto"], ["run.resume=auto", "run.rounds=48"]):
        capsys.readouterr()
        fit(tmp_path / "run", more=more)
        assert "holds this run, finished: nothing to do" in capsys.readouterr().out
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_between_the_stop_and_its_end_ends_there(tmp_path: Path) -> None:
    """The checkpoint of the round knows that it is the last one."""
    run = fit(tmp_path / "run", Seen(stop=7))
    models_before = models(run.path)
    for name in ("summary.json", "status.json"):
        (run.path / name).unlink()
    again = fit(tmp_path / "run", more=["run.resume=auto"])
    assert again.summary is not None
    assert again.summary["rounds"] == 7
    assert again.status is not None
    assert again.status.reason == "stopped early at round 7 by Seen"
    assert all(np.array_equal(models_before[k], v) for k, v in models(run.path).items())


def test_a_part_of_the_data_is_evaluated_and_all_at_the_stop(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", Seen(stop=8), more=["data.eval_examples=10"])
    last = [row for row in rows(run.path, "eval") if row["round"] == 8 and row["split"] == "test"]
    assert last[-1]["whole"]
    assert last[-1]["examples"] == 8 * 80
    assert run.summary is not None
    assert run.summary["final"]["loss"] == last[-1]["loss"]


def test_early_stopping_stops_after_its_patience(tmp_path: Path) -> None:
    run = cobo_dist.fit(None, [*QUIET, *SMALL, EARLY, f"run.dir={tmp_path / 'run'}"])
    means = run.metrics[run.metrics.client.isna() & (run.metrics.split == "validation")]
    best, waited, at = np.inf, 0, 0
    for r, loss in zip(means["round"][1:], means.loss[1:], strict=True):
        best, waited = (loss, 0) if loss < best - 0.05 else (best, waited + 1)
        at = r
        if waited == 2:
            break
    assert run.summary is not None
    assert run.summary["rounds"] == at < 24
    assert run.status is not None
    assert run.status.reason == f"stopped early at round {at} by early_stopping"


@pytest.mark.parametrize("first", [5, 9])
def test_early_stopping_resumed_in_the_middle_stops_at_the_same_round(
    first: int, pool: RankPool, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = [*SMALL, EARLY, "log.flush_every=1", "run.resume=auto"]
    assert main([*QUIET, *arguments, f"run.dir={whole}"]) == 0
    mine = [*arguments, f"run.dir={parts}"]
    assert pool.run(2, stopped, mine, 1, first, signal.SIGTERM) == [75, 75]
    assert main([*QUIET, *mine]) == 0
    assert_same(whole, parts)
    assert json.loads((parts / "summary.json").read_text())["rounds"] < 24


@pytest.mark.parametrize(
    ("settings", "values", "stops"),
    [
        ({"patience": 1}, [3, 2, 2], 3),
        ({"patience": 2}, [3, 4, 2, 2, 2], 5),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.6], 2),
        ({"patience": 1, "metric": "accuracy"}, [0.1, 0.2, 0.2], 3),
        ({"patience": 1, "metric": "accuracy", "mode": "min"}, [0.1, 0.2], 2),
        ({"patience": 3}, [3, 3, 3], 0),
        ({"patience": 1, "metric": "top2"}, [0.1, 0.2, 0.3, 0.2], 4),
        ({"patience": 1, "metric": "bits_per_byte"}, [3, 2, 2.5], 3),
    ],
)
def test_early_stopping_compares_with_the_best(
    settings: dict[str, Any], values: list[float], stops: int
) -> None:
    callback = EarlyStopping(**settings)
    metric = f"validation/{settings.get('metric', 'loss')}"
    asks = [callback.after_round(r, {metric: value}) for r, value in enumerate(values, start=1)]
    assert (asks.index(True) + 1 if True in asks else 0) == stops
    assert callback.after_round(9, {"loss": 0.0}) is None, "a round without an evaluation"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["callbacks=[{}]"], "callbacks.0.name=None is none of csv, early_stopping"),
        (["callbacks=[{name: early}]"], "is none of csv, early_stopping"),
        (["callbacks=[{name: csv, fil: x.csv}]"], "did you mean callbacks.0.file?"),
        (["callbacks=[{name: csv, file: ../x.csv}]"], "no plain name that ends in .csv"),
        (["callbacks=[csv]"], "callbacks.0='csv' must be a group of keys"),
        (["callbacks={name: csv}"], "must be a list"),
        ([EARLY, "run.eval_splits=[test]"], "set run.eval_splits=[test, validation]"),
        (["callbacks=[{name: early_stopping, metric: f1}]"], "the task has loss, accuracy"),
        ([EARLY, "run.eval_every=0"], "run.eval_every=0 evaluates only at the end"),
        (["callbacks=[{name: wandb}]"], "needs the library wandb, which is not installed"),
        (["callbacks=[{name: mlflow}]"], "needs the library mlflow, which is not installed"),
    ],
)
def test_a_callback_that_cannot_serve_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*QUIET, *SMALL, *arguments, f"run.dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def fail_in(session: Session, folder: Path, where: str) -> str:
    """Train with a callback that raises; return the line."""
    config = load_config(None, [*QUIET, *SMALL, f"run.dir={folder}"])
    with pytest.raises(RunFailure) as failed:
        run_in_session(config, session, callbacks=[Seen(fail=where)])
    assert failed.value.code == 1
    return str(failed.value)


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("begin", "the callback Seen failed at the start: ValueError: no beginning"),
        ("round", "the callback Seen failed after round 5: ValueError: no round"),
        ("end", "the callback Seen failed at the end: ValueError: no end"),
    ],
)
def test_a_callback_that_raises_ends_all_ranks_with_one_line(
    where: str, line: str, pool: RankPool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert pool.run_broken(2, fail_in, folder, where) == [line, line]
    status = json.loads((folder / "status.json").read_text())
    assert (status["exit_code"], status["reason"]) == (1, line)
    assert [row["round"] for row in rows(folder, "round")] == list(
        range(1, {"begin": 1, "round": 6, "end": 25}[where])
    )


def test_a_callback_that_failed_still_sees_the_end(tmp_path: Path) -> None:
    seen = Seen(fail="round")
    with pytest.raises(RunFailure, match="failed after round 5"):
        fit(tmp_path / "run", seen)
    assert seen.calls[-1] == ("end", False)


def test_a_csv_file_has_a_row_for_each_round_also_when_resumed(
    pool: RankPool, tmp_path: Path
) -> None:
    arguments = [*SMALL, "callbacks=[{name: csv}]", "log.flush_every=1", "run.resume=auto"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*QUIET, *arguments, f"run.dir={whole}"]) == 0
    mine = [*arguments, f"run.dir={parts}"]
    assert pool.run(1, stopped, mine, 0, 10, signal.SIGTERM) == [75]
    with (parts / "rounds.csv").open("a") as file:
        file.write("a row of a round that is repeated\n")
    assert main([*QUIET, *mine]) == 0
    tables = [list(csv.DictReader((one / "rounds.csv").open())) for one in (whole, parts)]
    for table in tables:
        assert [int(row["round"]) for row in table] == list(range(1, 25))
        assert [row["round"] for row in table if row["test/accuracy"]] == [
            "4",
            "8",
            "12",
            "16",
            "20",
            "24",
        ]
        for row in table:
            del row["seconds"]
    assert tables[0] == tables[1]


class FakeWandb(types.ModuleType):
    """Notes what a run would send."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.logged: dict[int, Any] = {}
        self.summary: dict[str, float] = {}
        self.ended: list[int] = []
        self.id = "abc"

    def Settings(self, **keys: str) -> dict[str, str]:
        return keys

    def init(self, **keys: Any) -> FakeWandb:
        self.started.append(keys)
        return self

    def log(self, metrics: Any, step: int) -> None:
        self.logged[step] = metrics

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def test_weights_and_biases_gets_every_round_and_goes_on_with_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("cobo_dist.callbacks.wandb_log.need_library", lambda *_: None)
    wandb = "callbacks=[{name: wandb, project: mine}]"
    run = fit(tmp_path / "run", more=[wandb, "run.rounds=8"])
    assert fake.started[0]["mode"] == "offline"
    assert fake.started[0]["id"] is None
    assert fake.started[0]["dir"] == str(run.path)
    assert sorted(fake.logged) == list(range(1, 9))
    assert run.summary is not None
    assert fake.summary["final/accuracy"] == run.summary["final"]["accuracy"]
    fit(tmp_path / "run", more=[wandb, "run.rounds=16", "run.resume=auto"])
    assert (fake.started[1]["id"], fake.started[1]["resume"]) == ("abc", "allow")
    assert sorted(fake.logged) == list(range(1, 17))
    assert fake.ended == [0, 0]


def test_a_callback_of_ones_own_is_named_in_a_config(tmp_path: Path) -> None:
    class Section(cobo_dist.callbacks.callback.CallbackSection):
        after: int = 3

    class Stop(Callback):
        name = "stop_after"
        Config = Section

        def after_round(self, r: int, metrics: Any) -> bool | None:
            return r == self.config.after

    register.callback("stop_after")(Stop)
    try:
        run = fit(tmp_path / "run", more=["callbacks=[{name: stop_after, after: 5}]"])
    finally:
        del register.callback.entries["stop_after"]
        register.version += 1
    assert run.summary is not None
    assert run.summary["rounds"] == 5


def test_settings_of_a_callback_are_checked_in_python() -> None:
    with pytest.raises(ConfigError, match="EarlyStopping: patience=0 is refused") as refused:
        EarlyStopping(patience=0)
    assert "\n" not in str(refused.value)


def returning(value: object) -> Callback:
    """A callback that returns a value after round 3."""

    class Returning(Callback):
        def after_round(self, r: int, metrics: Any) -> Any:
            return value if r == 3 else None

    return Returning()


def test_what_a_callback_returns(tmp_path: Path) -> None:
    """NumPy's truth stops a run as Python's does; what is neither true nor false is refused."""
    run = fit(tmp_path / "stopped", returning(np.True_))
    assert run.summary is not None
    assert run.summary["rounds"] == 3
    for value in (1, "yes", 0.5):
        with pytest.raises(
            RunFailure, match=r"Returning failed after round 3: .*; return True"
        ) as told:
            fit(tmp_path / f"run{value}", returning(value))
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("def after_round(self, r): pass", r"after_round\(self, r\): too many"),
        ("def begin(self): pass", r"begin\(self\): too many"),
        ("def end(self): pass", r"end\(self\): too many"),
        ("def state(self, x): return {}", r"state\(self, x\): missing a required argument"),
        ("def restore(self): pass", r"restore\(self\): too many"),
        ("def check(self, run): pass", r"check\(self, run\): too many"),
        ("stops_after = 'never'", "stops_after='never' is none of rounds, evaluations, none"),
        ("begin = 3", "begin is 3, which is no method"),
    ],
)
def test_a_callback_with_wrong_methods_is_refused_before_training(
    member: str, says: str, tmp_path: Path
) -> None:
    names: dict[str, Any] = {"Callback": Callback}
    exec(f"class Wrong(Callback):\n    {member}", names)
    with pytest.raises(ConfigError, match=rf"register.callback\('wrong'\) .*{says}"):
        register.callback("wrong")(names["Wrong"])
    with pytest.raises(
        ConfigError, match=says.replace(r"\(self", r"\(").replace("(, ", "(")
    ) as told:
        fit(tmp_path / "run", names["Wrong"]())
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("callbacks", "says"),
    [
        ([EarlyStopping], r"EarlyStopping is a class; write EarlyStopping\(\)"),
        (EarlyStopping(), r"is no list of callbacks; write callbacks=\["),
        (EarlyStopping, r"is no list of callbacks; write callbacks=\["),
        ("early_stopping", r"is no list of callbacks; write callbacks=\["),
        (None, r"is no list of callbacks; write callbacks=\["),
        ([int], "int does not derive from cobo_dist.Callback"),
    ],
)
def test_what_is_no_list_of_callbacks_is_refused(callbacks: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cobo_dist.fit(callbacks=callbacks)
