"""Sweeps: the runs of a grid, skipped runs, the selection of settings, tables, and real sweeps."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from problems import write_quadratic

from cobo_dist.cli.sweep import main
from cobo_dist.config import Config, load_config, read_value
from cobo_dist.errors import ConfigError
from cobo_dist.sweeps import process
from cobo_dist.sweeps.axes import Axis, read_axes, split_values
from cobo_dist.sweeps.folders import Result, look, read_result
from cobo_dist.sweeps.grid import Run, expand
from cobo_dist.sweeps.runner import locked
from cobo_dist.sweeps.selection import Selection, select
from cobo_dist.sweeps.tables import remarks

LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove a launcher's variables; default outputs go to tmp_path."""
    for name in LAUNCH:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def grid(*arguments: str, files: Sequence[str] = ()) -> list[Run]:
    return expand(files, read_axes(arguments))


def refusal_of(*arguments: str, files: Sequence[str] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        grid(*arguments, files=files)
    message = str(caught.value)
    assert message.splitlines() == [message], "one line"
    return message


def write_config(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


# -- what is typed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1", ("0.1",)),
        ("0.1,0.2", ("0.1", "0.2")),
        (" 0.1 , 0.2 ", ("0.1", "0.2")),
        ("[validation,test]", ("[validation,test]",)),
        ("[64],[64,64]", ("[64]", "[64,64]")),
        ("[[1,2],[3]],[4]", ("[[1,2],[3]]", "[4]")),
        ("{name: a, rate: 1},{name: b}", ("{name: a, rate: 1}", "{name: b}")),
        ("'a,b',c", ("'a,b'", "c")),
        ('"a,b"', ('"a,b"',)),
        ('["a],b",c],d', ('["a],b",c]', "d")),
        ("it's,that", ("it's", "that")),
        ("'it''s,b',c", ("'it''s,b'", "c")),
        ('"a\\"b,c",d', ('"a\\"b,c"', "d")),
        ("['it''s,b',c],d", ("['it''s,b',c]", "d")),
        ("", ("",)),
        ("a]b,c", ("a]b", "c")),
        ("a[b", ("a[b",)),
        ("1,", ("1", "")),
    ],
)
def test_commas_inside_brackets_and_quotes_belong_to_a_value(
    text: str, values: tuple[str, ...]
) -> None:
    assert split_values("some.key", text) == values


@example("it's,b")
@example('a"b,c')
@example("a\\")
@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" '\"\\,")))
def test_a_quoted_text_is_one_value(text: str) -> None:
    single = "'" + text.replace("'", "''") + "'"
    for quoted in (single, json.dumps(text, ensure_ascii=False)):
        assert split_values("data.text_dir", f"{quoted},x") == (quoted, "x")
        assert read_value("data.text_dir", quoted) == text


@pytest.mark.parametrize("text", ["[64,64", "{a: 1, b", "'a,b", "[1],[2,3"])
def test_an_open_bracket_or_quote_with_commas_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.hidden=.* not closed"):
        split_values("model.hidden", text)


def test_axes_keep_their_order_and_seed_is_short() -> None:
    axes = read_axes(["seed=0,1", "optimizer.lr=0.1,0.2", "run.rounds=5", "algorithm.name=local"])
    assert axes == [
        Axis("run.seed", ("0", "1")),
        Axis("optimizer.lr", ("0.1", "0.2")),
        Axis("run.rounds", ("5",)),
        Axis("algorithm.name", ("local",)),
    ]
    assert [axis.is_choice for axis in axes] == [False, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lr=0.1,0.2,0.1"], "optimizer.lr=0.1,0.2,0.1 has 0.1 twice"),
        (["optimizer.lr=0.1,1e-1"], "0.1 and 1e-1, the same, twice"),
        (["model.hidden=[64],[64, 64],[64,64]"], "[64, 64] and [64,64], the same"),
        (["algorithm.name=cobo,'cobo'"], "cobo and 'cobo', the same"),
        (["seed=0", "run.seed=1"], "run.seed is given twice; write run.seed=0,1"),
        (["optimizer.lr=0.1,,0.2"], "optimizer.lr=0.1,,0.2 has an empty value"),
        (["run.dir=x"], "--out DIR"),
        (["run.overwrite=true"], "remove its folder"),
        (["run.resume=auto"], "go on by themselves"),
        (["--rank=3"], "'--rank=3' is not understood"),
        (["fast"], "'fast' is not understood"),
        (["=3"], "'=3' is not understood"),
    ],
)
def test_mistyped_axes_are_refused(arguments: list[str], words: str) -> None:
    assert words in refusal_of(*arguments)


# -- the grid ------------------------------------------------------------------------------------------


def test_seeds_are_innermost_wherever_they_stand() -> None:
    runs = grid("seed=3,1", "optimizer.lr=0.2,0.1", "algorithm.name=local,fedavg")
    assert [run.name for run in runs] == [
        f"digits-{method}-lr{rate}-s{seed}"
        for rate in ("0.2", "0.1")
        for method in ("local", "fedavg")
        for seed in (3, 1)
    ]
    assert [run.config.optimizer.lr for run in runs] == [0.2] * 4 + [0.1] * 4
    assert [run.seed for run in runs] == [3, 1] * 4


def test_a_method_without_the_key_runs_once() -> None:
    runs = grid("algorithm.name=local,cobo", "algorithm.rho=0.05,0.5")
    assert [run.name for run in runs] == [
        "digits-local-s0",
        "digits-cobo-rho0.05-s0",
        "digits-cobo-rho0.5-s0",
    ]
    assert not any("rho" in argument for argument in runs[0].arguments)
    assert runs[0].varied == {}
    assert runs[1].varied == {"algorithm.rho": 0.05}
    quoted = grid("algorithm.name='local',\"cobo\"", "algorithm.rho=0.05,0.5")
    assert [run.name for run in quoted] == [run.name for run in runs]


def test_nested_keys_and_other_sections_are_dropped_too(tmp_path: Path) -> None:
    file = write_quadratic(tmp_path / "problem.npz")
    runs = grid(
        "task.name=digits,quadratic",
        f"task.file={file}",
        "algorithm.name=oracle,cobo",
        "algorithm.sampling.rate=0.5,2",
        "run.eval_splits=[test]",
    )
    assert [run.name for run in runs] == [
        "digits-oracle-s0",
        "digits-cobo-rate0.5-s0",
        "digits-cobo-rate2-s0",
        "quadratic-oracle-s0",
        "quadratic-cobo-rate0.5-s0",
        "quadratic-cobo-rate2-s0",
    ]
    assert [any("task.file" in one for one in run.arguments) for run in runs] == [False] * 3 + [
        True
    ] * 3


def test_keys_are_dropped_by_the_default_model_of_the_task() -> None:
    """ResNet-9 has a width, and cross_silo takes it by itself; the MLP of digits has hidden layers."""
    runs = grid("task.name=digits,cross_silo", "model.width=32,64", "model.hidden=[8],[9]")
    assert [run.name for run in runs] == [
        "digits-cobo-hidden=8-s0",
        "digits-cobo-hidden=9-s0",
        "cross_silo-cobo-width32-s0",
        "cross_silo-cobo-width64-s0",
    ]


def test_an_unknown_key_is_refused() -> None:
    assert "algorithm.rhoo is not a known key" in refusal_of(
        "algorithm.name=local,cobo", "algorithm.rhoo=0.1"
    )
    assert "optimizer.lrr is not a known key" in refusal_of("optimizer.lrr=0.1")


def test_a_key_that_no_run_of_the_sweep_has_is_refused() -> None:
    """If it were dropped from all runs, the sweep would not be the one that was typed."""
    message = refusal_of("algorithm.name=local,fedavg", "algorithm.rho=0.1,0.2")
    assert "algorithm.rho is no key of algorithm.name=local" in message
    # Of two keys left out here and there, the one that has no place anywhere is named.
    message = refusal_of("algorithm.name=local,cobo", "algorithm.rho=0.1", "algorithm.centers=2")
    assert "algorithm.centers" in message


def test_a_wrong_value_anywhere_is_refused() -> None:
    assert "optimizer.lr=-1" in refusal_of("optimizer.lr=0.1,-1")
    assert "algorithm.name='kobo'" in refusal_of("algorithm.name=local,kobo")


def test_config_files_are_the_outermost_axis() -> None:
    files = [
        write_config("b.yaml", "algorithm: {name: cobo, rho: 0.3}\nrun: {rounds: 7}\n"),
        write_config("a.yaml", "algorithm: {name: local}\n"),
    ]
    runs = grid("seed=0,1", "algorithm.gamma=0.1", files=files)
    assert [(run.file, run.name) for run in runs] == [
        ("b.yaml", "digits-cobo-s0"),
        ("b.yaml", "digits-cobo-s1"),
        ("a.yaml", "digits-local-s0"),
        ("a.yaml", "digits-local-s1"),
    ]
    assert runs[0].config.run.rounds == 7
    assert runs[0].config.algorithm.model_dump()["gamma"] == 0.1


def test_files_of_the_same_method_have_different_names() -> None:
    files = [
        write_config("weak.yaml", "algorithm: {name: cobo, rho: 0.1}\n"),
        write_config("strong.yaml", "algorithm: {name: cobo, rho: 0.9}\n"),
        write_config("x/strong.yaml", "algorithm: {name: cobo, rho: 0.8}\n"),
        write_config("again.yaml", "algorithm: {name: cobo, rho: 0.1}\n"),
    ]
    runs = grid(files=files)
    assert [run.name for run in runs] == [
        "digits-cobo-weak-s0",
        "digits-cobo-strong-s0",
        "digits-cobo-x_strong-s0",
    ], "again.yaml equals weak.yaml"
    assert len({run.method for run in runs}) == 3


def test_a_bad_file_among_several_is_named() -> None:
    files = [write_config("a.yaml", ""), write_config("b.yaml", "algorithm: {rho: -1}\n")]
    assert "b.yaml" in refusal_of(files=files)
    assert "does not exist" in refusal_of(files=["a.yaml", "none.yaml"])
    assert "not valid YAML" in refusal_of(files=["a.yaml", write_config("c.yaml", "a: [1")])


def test_names_are_safe_unique_and_do_not_depend_on_the_rest_of_the_grid() -> None:
    values = ["/data/a b.txt", "/data/a_b.txt", "/data/A:b.txt", "x" * 300, "x" * 301]
    runs = grid("run.device=" + ",".join(f"'{value}'" for value in values))
    names = [run.name for run in runs]
    assert len({name.lower() for name in names}) == len(values)
    for name in names:
        assert len(name) <= 140
        assert set(name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._=+-"
        )
    assert names[3] == grid("run.device=cpu," + "x" * 300)[1].name


def test_names_spell_numbers_one_way() -> None:
    sampling = "algorithm.sampling.name=constant,all"
    first = grid("optimizer.lr=1e-1,1", "model.hidden=[64],[64,64]", sampling)
    again = grid("optimizer.lr=0.10,1.0", "model.hidden=[64],[64, 64]", sampling)
    assert [run.name for run in first] == [run.name for run in again]
    assert first[3].name == "digits-cobo-lr0.1-hidden=64_64-sampling=all-s0"
    assert first[4].name == "digits-cobo-lr1-hidden=64-sampling=constant-s0"


def test_validation_is_evaluated_where_there_is_something_to_choose(tmp_path: Path) -> None:
    file = write_quadratic(tmp_path / "problem.npz")
    quadratic = ("task.name=quadratic", f"task.file={file}")
    for arguments, splits in (
        (["optimizer.lr=0.1,0.2"], ("validation", "test")),
        (["optimizer.lr=0.1", "seed=0,1", "algorithm.name=local,cobo"], ("test",)),
        (["optimizer.lr=0.1,0.2", "run.eval_splits=[test]"], ("test",)),
        (["optimizer.lr=0.1,0.2", *quadratic], ("test",)),
        (["optimizer.lr=0.1,0.2", "task.validation_fraction=0.0"], ("test",)),
    ):
        for run in grid(*arguments):
            assert run.config.run.eval_splits == splits
            assert load_config(run.file, run.arguments) == run.config, (
                "what is run is what is meant"
            )
    file_says = write_config("f.yaml", "run: {eval_splits: [test]}\n")
    assert grid("optimizer.lr=0.1,0.2", files=[file_says])[0].config.run.eval_splits == ("test",)


# -- what lies in a folder -----------------------------------------------------------------------------


def leave_run(
    folder: Path,
    config: Config,
    scores: Mapping[tuple[str, str], float] = {("test", "accuracy"): 0.5},
    status: str = "done",
) -> None:
    """Write the files of a run that a sweep reads."""
    (folder).mkdir(parents=True)
    run = config.run.model_copy(update={"dir": str(folder), "engine": "vectorised"})
    (folder / "config.yaml").write_text(config.model_copy(update={"run": run}).to_yaml())
    last = config.run.rounds
    lines = []
    for (split, metric), value in scores.items():
        for r in (0, last):
            row = {"event": "eval", "round": r, "split": split, "client": None}
            lines.append(row | {metric: value if r == last else 0.99})
            lines.append(row | {"client": 0, metric: 0.98})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "status.json").write_text(
        json.dumps({"exit_code": int(status != "done"), "status": status, "reason": ""})
    )
    if status == "done":
        (folder / "summary.json").write_text(
            json.dumps({"rounds": last, "seconds": 1.5, "bytes_sent": 0, "final": {}})
        )


def test_a_done_run_of_the_same_settings_is_skipped(tmp_path: Path) -> None:
    wanted = load_config(None, ["run.rounds=5"])
    assert look(tmp_path / "a", wanted) == "new"
    leave_run(tmp_path / "a", wanted)
    assert look(tmp_path / "a", wanted) == "done"
    logs = load_config(None, ["run.rounds=5", "log.figures=false", "log.progress=plain"])
    assert look(tmp_path / "a", logs) == "done"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("run.rounds=6", "run.rounds=5, but this sweep wants run.rounds=6"),
        ("run.seed=1", "run.seed=0, but this sweep wants run.seed=1"),
        ("algorithm.rho=0.7", "algorithm.rho=0.2, but this sweep wants algorithm.rho=0.7"),
        ("run.engine=one_by_one", "run.engine=vectorised, but"),
        ("algorithm.name=local", "algorithm.name=cobo and "),
    ],
)
def test_a_done_run_of_other_settings_is_refused(tmp_path: Path, key: str, words: str) -> None:
    leave_run(tmp_path / "a", load_config(None, ["run.rounds=5"]))
    with pytest.raises(ConfigError) as caught:
        look(tmp_path / "a", load_config(None, ["run.rounds=5", key]))
    assert words in str(caught.value)
    assert f"give another --out, or remove {tmp_path / 'a'}" in str(caught.value)


def test_what_did_not_finish_runs_again(tmp_path: Path) -> None:
    wanted = load_config(None, ["run.rounds=5"])
    leave_run(tmp_path / "failed", wanted, status="failed")
    leave_run(tmp_path / "killed", wanted)
    (tmp_path / "killed" / "status.json").unlink()
    leave_run(tmp_path / "torn", wanted)
    (tmp_path / "torn" / "summary.json").unlink()
    leave_run(tmp_path / "other", load_config(None, ["run.rounds=9"]), status="failed")
    for name in ("failed", "killed", "torn", "other"):
        assert look(tmp_path / name, wanted) == "again", name
    for name in ("failed", "other"):
        (tmp_path / name / "checkpoints" / "round-000000004").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "round-000000005.part").mkdir()
    assert look(tmp_path / "failed", wanted) == "resume"
    assert look(tmp_path / "other", wanted) == "again"


def test_a_done_run_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    leave_run(tmp_path / "a", load_config(None, []))
    (tmp_path / "a" / "config.yaml").write_text("run: {of_another_version: 1}\n")
    with pytest.raises(ConfigError, match=r"cannot be compared.*of_another_version"):
        look(tmp_path / "a", load_config(None, []))


def test_the_result_is_that_of_the_last_round(tmp_path: Path) -> None:
    """A run writes 0.99 at round 0 and 0.98 for a client; the final mean is what is read."""
    config = load_config(None, ["run.rounds=5"])
    scores = {("validation", "accuracy"): 0.25, ("test", "accuracy"): 0.5}
    leave_run(tmp_path / "a", config, scores)
    assert read_result(tmp_path / "a") == Result(scores, 1.5)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines(keepends=True)
    early = [line for line in lines if '"validation"' not in line or '"round": 0' in line]
    (tmp_path / "a" / "metrics.jsonl").write_text("".join(early))
    assert read_result(tmp_path / "a").scores == {("test", "accuracy"): 0.5}

    with (tmp_path / "a" / "metrics.jsonl").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read: it has 1\.1 TB"):
        read_result(tmp_path / "a")


def test_a_long_line_of_metrics_does_not_fill_the_memory(
    tmp_path: Path,
) -> None:
    scores = {("test", "accuracy"): 0.5}
    leave_run(tmp_path / "a", load_config(None, ["run.rounds=5"]), scores)
    with (tmp_path / "a" / "metrics.jsonl").open("ab") as file:
        file.truncate(1 << 26)
    tracemalloc.start()
    try:
        assert read_result(tmp_path / "a").scores == scores
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()


# -- choosing ------------------------------------------------------------------------------------------


def selection_of(
    arguments: Sequence[str],
    validation: Mapping[str, float | None],
    test: Mapping[str, float] | None = None,
    metric: str = "accuracy",
) -> Selection:
    """The selection of the only method, from validation scores by run name; None: not done."""
    axes = read_axes(arguments)
    runs = expand([], axes)
    assert {run.name for run in runs} == set(validation)
    results = {
        name: Result(
            {("validation", metric): value, ("test", metric): (test or validation)[name] or 0.0},
            1.0,
        )
        for name, value in validation.items()
        if value is not None
    }
    (selection,) = select(runs, results, axes)
    return selection


LR = "optimizer.lr=0.1,0.2,0.4"
THREE = ("digits-cobo-lr0.1-s0", "digits-cobo-lr0.2-s0", "digits-cobo-lr0.4-s0")


def test_validation_chooses_where_test_disagrees() -> None:
    validation = dict(zip(THREE, (0.5, 0.7, 0.6), strict=True))
    test = dict(zip(THREE, (0.9, 0.1, 0.8), strict=True))
    selection = selection_of([LR], validation, test)
    assert selection.best is not None
    assert selection.best.label == "optimizer.lr=0.2"
    assert selection.best.test is not None
    assert selection.best.test[0] == 0.1
    assert selection.notes == (), "0.2 lies inside"


@pytest.mark.parametrize(
    ("metric", "best"), [("accuracy", "0.4"), ("perplexity", "0.1"), ("loss", "0.1")]
)
def test_accuracy_is_highest_and_the_others_lowest(metric: str, best: str) -> None:
    selection = selection_of([LR], dict(zip(THREE, (2.0, 3.0, 4.0), strict=True)), metric=metric)
    assert selection.best is not None
    assert selection.metric == metric
    assert selection.best.label == f"optimizer.lr={best}"


@pytest.mark.parametrize(("values", "end"), [((3, 2, 1), "smallest"), ((1, 2, 3), "largest")])
def test_a_best_value_at_the_boundary_is_noted(values: Sequence[float], end: str) -> None:
    selection = selection_of([LR], dict(zip(THREE, values, strict=True)))
    (note,) = selection.notes
    assert f"is the {end} value tried; the optimum may lie outside" in note


def test_the_mean_over_seeds_decides_and_unfinished_settings_are_left_out() -> None:
    arguments = ["optimizer.lr=0.1,0.2,0.4", "seed=0,1"]
    figures: dict[str, float | None] = {
        "digits-cobo-lr0.1-s0": 0.9, "digits-cobo-lr0.1-s1": 0.1,
        "digits-cobo-lr0.2-s0": 0.6, "digits-cobo-lr0.2-s1": 0.6,
        "digits-cobo-lr0.4-s0": 0.99, "digits-cobo-lr0.4-s1": None,
    }  # fmt: skip
    selection = selection_of(arguments, figures)
    assert selection.best is not None
    assert selection.best.label == "optimizer.lr=0.2"
    assert selection.best.validation == (0.6, 0.0)
    assert selection.notes == ("left out: optimizer.lr=0.4: 1 of 2 seeds done",)


def test_scores_that_are_not_finite_and_ties() -> None:
    nan = float("nan")
    selection = selection_of([LR], dict(zip(THREE, (nan, 0.6, 0.6), strict=True)))
    assert selection.best is not None
    assert selection.best.label == "optimizer.lr=0.2"
    assert selection.notes == (
        "left out: optimizer.lr=0.1: its validation scores are not finite",
        "as good on validation data: optimizer.lr=0.4; the first of them is taken",
    )
    nothing = selection_of([LR], dict.fromkeys(THREE))
    assert nothing.best is None
    assert nothing.notes[-1] == "nothing is chosen: no setting is complete"


def test_without_validation_data_nothing_is_chosen(tmp_path: Path) -> None:
    file = write_quadratic(tmp_path / "problem.npz")
    for extra, words in (
        (["run.eval_splits=[test]"], "run.eval_splits=[test] lacks validation"),
        (["task.name=quadratic", f"task.file={file}"], "task quadratic has no validation data"),
        (
            ["task.validation_fraction=0.0"],
            "has no validation data with task.validation_fraction=0",
        ),
    ):
        axes = read_axes([LR, *extra])
        runs = expand([], axes)
        results = {run.name: Result({("test", "loss"): 1.0}, 1.0) for run in runs}
        (selection,) = select(runs, results, axes)
        assert selection.best is None
        assert words in selection.notes[0]


def test_each_method_has_its_own_choice_and_never_a_seed_or_method() -> None:
    axes = read_axes(["algorithm.name=local,cobo", "algorithm.rho=0.1,0.2", "seed=0,1"])
    runs = expand([], axes)
    results = {
        run.name: Result({("validation", "accuracy"): run.varied.get("algorithm.rho", 0.9)}, 1.0)  # type: ignore[dict-item]
        for run in runs
    }
    local, cobo = select(runs, results, axes)
    assert (local.method, cobo.method) == ("digits-local", "digits-cobo")
    assert local.best is not None
    assert (local.best.varied, local.notes) == ({}, ())
    assert cobo.best is not None
    assert cobo.best.label == "algorithm.rho=0.2"
    only_seeds = read_axes(["algorithm.name=local,cobo", "seed=0,1"])
    for selection in select(expand([], only_seeds), {}, only_seeds):
        assert selection.best is None
        assert selection.notes == ()


@pytest.mark.parametrize(
    ("axis", "methods"),
    [
        ("task.partition.alpha=0.1,1", ["classification-cobo-alpha0.1", "classification-cobo-alpha1"]),
        ("task.source.set=wine,iris", ["classification-cobo-set=wine", "classification-cobo-set=iris"]),
        ("task.change.name=none,labels",
         ["classification-cobo-change=none", "classification-cobo-change=labels"]),
        ("task.test_fraction=0.2,0.3",
         ["classification-cobo-test_fraction0.2", "classification-cobo-test_fraction0.3"]),
        ("data.seed=1,2", ["classification-cobo-seed1", "classification-cobo-seed2"]),
        ("task.standardize=true,false", ["classification-cobo"]),
    ],
)  # fmt: skip
def test_problems_are_compared_and_never_chosen_among(axis: str, methods: list[str]) -> None:
    """Of each problem the best setting is chosen, and its file has the problem in its name."""
    given = [axis, "optimizer.lr=0.1,0.2", "task.name=classification", "seed=0,1"]
    if "alpha" in axis:
        given += ["task.partition.name=dirichlet"]
    axes = read_axes(given)
    runs = expand([], axes)
    results = {
        run.name: Result({("validation", "accuracy"): run.config.optimizer.lr}, 1.0) for run in runs
    }
    found = select(runs, results, axes)
    assert [one.method for one in found] == methods
    for selection in found:
        assert selection.best is not None
        assert selection.best.varied["optimizer.lr"] == 0.2
        assert [run.seed for run in selection.best.runs] == [0, 1]
    only = read_axes([axis, "task.name=classification", *given[4:]])
    if len(methods) > 1:
        assert not any(one.best for one in select(expand([], only), {}, only))


def test_problems_whose_names_look_alike_are_different_methods() -> None:
    runs = grid(
        "task.name=classification", "task.source.name=csv", "task.source.file=a b.csv,a_b.csv"
    )
    assert len({run.method for run in runs}) == len({run.name for run in runs}) == 2


@pytest.mark.parametrize("axis", ["run.rounds=5,10", "algorithm.rho=0.1,0.2"])
def test_tables_warn_of_runs_of_different_lengths(axis: str) -> None:
    axes = read_axes(["algorithm.name=cobo", axis])
    runs = expand([], axes)
    results = {run.name: Result({("validation", "accuracy"): 0.9}, 1.0) for run in runs}
    notes = [one for one in remarks(select(runs, results, axes)) if one.startswith("warning: ")]
    if axis.startswith("algorithm"):
        assert notes == []
        return
    (note,) = notes
    assert "rounds (5: digits-cobo (run.rounds=5); 10: digits-cobo (run.rounds=10))" in note
    first = {runs[0].name: results[runs[0].name]}
    assert remarks(select(runs, first, axes))[-1][:8] != "warning:", "the other is not done"


# -- a sweep of runs that are done already: all but the training -----------------------------------------

SETTINGS = ["algorithm.name=local,cobo", "algorithm.rho=0.05,0.5,5", "seed=0,1", "run.rounds=5"]


@pytest.fixture
def done_before(tmp_path: Path) -> Path:
    """All runs of SETTINGS are done: rho=0.5 is best on validation data, rho=5 and then 0.05 on test data."""
    likes = {0.05: (0.5, 0.8), 0.5: (0.7, 0.1), 5: (0.6, 0.9)}
    for run in grid(*SETTINGS):
        validation, test = likes.get(run.varied.get("algorithm.rho"), (0.4, 0.4))  # type: ignore[call-overload]
        wobble = 0.01 * run.seed
        scores = {("validation", "accuracy"): validation + wobble, ("test", "accuracy"): test}
        leave_run(tmp_path / "out" / run.name, run.config, scores)
    return tmp_path / "out"


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(process, "train", refuse)


@pytest.mark.usefixtures("no_training")
def test_what_is_done_is_skipped_and_the_tables_are_written(
    done_before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SETTINGS, "--out", str(done_before)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "[1/8] digits-local-s0 ... skipped, done before, test accuracy 0.4\n" in said.out
    assert "8 runs: 8 done (8 of them before)" in said.out
    with (done_before / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [run.name for run in grid(*SETTINGS)]
    assert {row["state"] for row in rows} == {"done"}
    assert [row["algorithm.rho"] for row in rows] == [
        "",
        "",
        *["0.05"] * 2,
        *["0.5"] * 2,
        *["5"] * 2,
    ]
    assert [float(row["test_accuracy"]) for row in rows[2::2]] == [0.8, 0.1, 0.9]
    assert float(rows[5]["validation_accuracy"]) == 0.71
    assert (
        "| digits-cobo | rho=0.5 | 2/2 | accuracy | 0.705 ± 0.064"
        in (done_before / "sweep.md").read_text()
    )
    assert not list(done_before.rglob("*.part"))


@pytest.mark.usefixtures("no_training")
def test_the_chosen_settings_are_a_config_file(done_before: Path) -> None:
    """The setting with the best validation score is the worst on test data; local has one setting."""
    assert main([*SETTINGS, "--out", str(done_before)]) == 0
    alone, file = sorted((done_before / "best").iterdir(), reverse=True)
    assert (alone.name, file.name) == ("digits-local.yaml", "digits-cobo.yaml")
    assert "Its only setting: validation accuracy 0.405" in alone.read_text()
    text = file.read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert f"--config {file}" in head[0]
    assert "algorithm.rho=0.5: validation accuracy 0.705" in text
    assert f"python -m cobo_dist.sweep {' '.join(SETTINGS)}" in text
    wanted = ["algorithm.rho=0.5", "run.rounds=5", "run.eval_splits=[validation,test]"]
    assert load_config(str(file), []) == load_config(None, wanted)
    run = text.partition("\nrun:\n")[2].partition("\ntask:")[0]
    assert run
    assert all(f"  {key}:" not in run for key in ("dir", "seed", "overwrite"))
    assert "\n  engine: auto" in text


@pytest.mark.usefixtures("no_training")
def test_tables_replace_links_and_pipes(done_before: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    (done_before / "best").mkdir()
    names = ("sweep.csv", "sweep.md", "best/digits-cobo.yaml", "sweep.csv.part", "sweep.md.part")
    for name in names:
        (done_before / name).symlink_to(other)
    assert main([*SETTINGS, "--out", str(done_before)]) == 0
    assert other.read_text() == "kept"
    assert not any((done_before / name).is_symlink() for name in names[:3])


@pytest.mark.usefixtures("no_training")
def test_an_outdated_choice_is_removed(done_before: Path) -> None:
    assert main([*SETTINGS, "--out", str(done_before)]) == 0
    stale = done_before / "best" / "digits-cobo.yaml"
    assert stale.exists()
    for folder in done_before.glob("digits-cobo-*"):
        (folder / "metrics.jsonl").write_text("")
    assert main([*SETTINGS, "--out", str(done_before)]) == 0
    assert not stale.exists()


@pytest.mark.usefixtures("no_training")
def test_dry_run_starts_and_writes_nothing(
    done_before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (done_before / "digits-cobo-rho5-s1" / "summary.json").unlink()
    before = sorted(done_before.rglob("*"))
    more = [*SETTINGS[:2], "seed=0,1,2", SETTINGS[3]]
    assert main([*more, "--out", str(done_before), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert lines[0].startswith("[ 1/12] digits-local-s0 ")
    states = {line.split("]")[1].split()[0]: line for line in lines[:-1]}
    assert states["digits-local-s0"].endswith("skip (done)")
    assert states["digits-local-s2"].endswith(" run")
    assert states["digits-cobo-rho5-s1"].endswith("run again (it did not finish)")
    assert lines[-1].startswith("5 to run on 1 rank(s) each, 7 to skip")
    assert sorted(done_before.rglob("*")) == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranks", "0"], "--ranks 0 is no number of ranks"),
        (["--ranks", "two"], "--ranks two is no number of ranks"),
        (["--config", "none.yaml"], "--config none.yaml does not exist"),
        (["--config"], "expected at least one argument"),
        (["--config", "f.yaml", "./f.yaml"], "--config ./f.yaml is given twice"),
        (["--out", "f.yaml"], "f.yaml is a file"),
        (["--out", "f.yaml/below"], "f.yaml is a file"),
        (["--out", ""], "--out is empty"),
        (["--rank", "2"], "'--rank' is not understood"),
        (["--only", "x"], "--only x is no number of a run"),
        (["--only", "0"], "--only 0: this sweep has the runs 1 to 1"),
        (["--only", "3", "seed=0,1"], "--only 3: this sweep has the runs 1 to 2"),
        (["--only", "1", "--tables"], "exclude each other"),
        (["--out", "out", *SETTINGS[:3], "run.rounds=6"], "run.rounds=5, but this sweep wants"),
        (["run.dir=x"], "--out DIR"),
        (["optimizer.lr=0.1,x"], "optimizer.lr='x'"),
    ],
)
def test_what_is_refused_starts_nothing(
    done_before: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    write_config("f.yaml", "run: {rounds: 5}\n")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not Path("runs").exists()


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="no /proc")
@pytest.mark.usefixtures("no_training")
def test_a_folder_that_cannot_be_made_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", "/proc/sweep"]) == 2  # even root cannot write there
    assert "/proc/sweep/logs cannot be made" in capsys.readouterr().err


@pytest.mark.usefixtures("no_training")
def test_settings_may_follow_config_and_set(
    done_before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config("f.yaml", "run: {rounds: 5, dir: elsewhere, overwrite: true}\n")
    arguments = ["--config", file, *SETTINGS[:2], "--set", SETTINGS[2], "--out", "out", "--dry-run"]
    assert main(arguments) == 0
    assert "0 to run on 1 rank(s) each, 8 to skip" in capsys.readouterr().out


@pytest.mark.usefixtures("no_training")
def test_a_start_by_a_launcher_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--out", "out"]) == 2
    assert "WORLD_SIZE=2" in capsys.readouterr().err


@pytest.mark.usefixtures("no_training")
def test_two_sweeps_do_not_share_a_folder(
    done_before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(done_before / ".lock")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert main([*SETTINGS, "--out", str(done_before)]) == 2
        assert "in use by another sweep" in capsys.readouterr().err
    finally:
        other.kill()
        other.communicate()
    assert main([*SETTINGS, "--out", str(done_before)]) == 0


@pytest.mark.usefixtures("no_training")
def test_tables_alone_start_nothing(done_before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They contain the finished runs, while other jobs still run."""
    (done_before / "digits-cobo-rho5-s1" / "summary.json").unlink()
    with locked(done_before / ".lock", shared=True):
        assert main([*SETTINGS, "--out", str(done_before), "--tables"]) == 0
    assert "8 runs: 7 done, 1 not started" in capsys.readouterr().out
    assert "--tables" not in (done_before / "sweep.md").read_text()
    assert (done_before / "sweep.csv").exists()


def test_one_run_of_a_sweep_in_a_job_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--only: done, stopped with a checkpoint or without, failed; no tables; no run twice at once."""
    out = Path("out")
    outcomes = iter([(0, 0), (75, signal.SIGUSR1), (-9, signal.SIGTERM), (1, 0)])

    def train(started: object, folder: Path, log: Path, stop: process.StopSignal) -> process.Exited:
        code, number = next(outcomes)
        if number:
            stop.handle(number, None)
        if code == 0:
            leave_run(folder, load_config(None, ["run.rounds=5"]), {("test", "accuracy"): 0.5})
        else:
            folder.mkdir(parents=True)
        if code in (1, 75):
            (folder / "status.json").write_text(json.dumps({"exit_code": code, "status": "x"}))
        return process.Exited(code, "" if code == 0 else "why", 1.0)

    monkeypatch.setattr(process, "train", train)
    sweep = ["run.rounds=5", "seed=0,1,2,3", "--out", str(out), "--only"]
    out.mkdir()
    with locked(out / ".lock", shared=True):
        codes = [main([*sweep, str(number)]) for number in (1, 2, 3, 4)]
    assert codes == [0, 75, 143, 1]
    assert "[1/4] digits-cobo-s0 ... done in 1.0 s" in capsys.readouterr().out
    assert not (out / "sweep.csv").exists()
    with locked(out / "logs" / ".digits-cobo-s3.lock"):
        assert main([*sweep, "4"]) == 2
    with locked(out / ".lock"):
        assert main([*sweep, "4"]) == 2
    assert "in use by another sweep" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "python -m cobo_dist.sweep algorithm.name=local,cobo,oracle seed=0,1,2" in said
    assert "exit codes" in said


# -- the subprocess ------------------------------------------------------------------------------------


def test_the_command_of_a_run() -> None:
    (run,) = grid("optimizer.lr=0.3", files=[write_config("f.yaml", "")])
    folder = Path("out # 1") / run.name
    command = process.command(run, folder, 3, "again")
    assert command[:5] == [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3",
    ]  # fmt: skip
    assert command[5:9] == ["-m", "cobo_dist.train", "--config", "f.yaml"]
    config = load_config("f.yaml", command[9:])
    assert config.run_dir == folder
    assert config.run.overwrite
    assert config.run.resume == "never"
    goes_on = load_config("f.yaml", process.command(run, folder, 3, "resume")[9:])
    assert goes_on.run.resume == "auto"
    assert not goes_on.run.overwrite
    assert not config.log.figures
    assert config.optimizer.lr == 0.3
    (drawn,) = grid("log.figures=true")
    assert load_config(None, process.command(drawn, folder, 1, "new")[7:]).log.figures


TORCHRUN_SAYS = """
Traceback (most recent call last):
  File "x.py", line 1, in <module>
{own}
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
Root Cause (first observed failure):
[0]:
  exitcode  : {code} (pid: 7)
  traceback : {traceback}
============================================================
"""


@pytest.mark.parametrize(
    ("own", "code", "traceback", "reason"),
    [
        ("error: the loss became nan", 1, "To enable traceback see: x", "the loss became nan"),
        ("error: no\nerror: rank 1: yes", 2, "To enable traceback see: x", "rank 1: yes"),
        ("ValueError: seven", 1, "To enable traceback see: x", "ValueError: seven"),
        ("", -9, "Signal 9 (SIGKILL) received by PID 7", "Signal 9 (SIGKILL) received by PID 7"),
    ],
)
def test_the_reason_of_a_failure(
    tmp_path: Path, own: str, code: int, traceback: str, reason: str
) -> None:
    log = tmp_path / "log"
    text = TORCHRUN_SAYS.format(own=own, code=code, traceback=traceback)
    ended = process.train(
        [sys.executable, "-c", f"print({text!r}); raise SystemExit(1)"],
        tmp_path / "none",
        log,
        process.StopSignal(),
    )
    assert (ended.code, ended.reason) == (code, reason)
    assert log.read_text() == text + "\n"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_log_is_a_new_file(tmp_path: Path, kind: str) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    other.write_text("kept")
    if kind == "link":
        log.symlink_to(other)
    else:
        os.mkfifo(log)
    # A process of its own: to open a pipe waits for ever.
    code = (
        "import sys; from pathlib import Path; from cobo_dist.sweeps.process import StopSignal, train\n"
        "fails = [sys.executable, '-c', 'exit(\"error: seven\")']\n"
        "print(train(fails, Path('none'), Path('log'), StopSignal()).reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
    assert done.stdout == "seven\n"
    assert other.read_text() == "kept"
    assert not log.is_symlink()
    assert log.is_file()


def test_an_earlier_status_is_not_this_runs_reason(tmp_path: Path) -> None:
    leave_run(tmp_path / "a", load_config(None, []), status="failed")
    (tmp_path / "a" / "status.json").write_text('{"exit_code": 1, "reason": "old"}')
    fails = [sys.executable, "-c", "print('error: new'); raise SystemExit(2)"]
    ended = process.train(fails, tmp_path / "a", tmp_path / "log", process.StopSignal())
    assert (ended.code, ended.reason) == (2, "new")


STARTS_ANOTHER = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
print(subprocess.Popen(sleep, start_new_session=True).pid, flush=True)
time.sleep(60)
"""
"""Ends at once on SIGTERM, and leaves a process in another session, as torchrun may."""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def in_a_moment(condition: Callable[[], object], number: signal.Signals) -> threading.Thread:
    """Send this process a signal as soon as the condition holds."""

    def watch() -> None:
        wait_for(condition)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_stopped_sweep_leaves_no_process(tmp_path: Path) -> None:
    log, stop = tmp_path / "log", process.StopSignal()
    with stop.listening():
        thread = in_a_moment(lambda: log.exists() and log.read_text().strip(), signal.SIGTERM)
        ended = process.train([sys.executable, "-c", STARTS_ANOTHER], tmp_path / "a", log, stop)
        thread.join()
    assert stop.signal == signal.SIGTERM
    assert ended.code == -signal.SIGTERM
    wait_for(lambda: not alive(int(log.read_text())), 5.0)


# -- real ones -----------------------------------------------------------------------------------------

TINY = ["run.rounds=5", "run.threads=1", "model.hidden=[8]"]


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "sweep.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_sweep_goes_on_past_a_failure_and_then_does_only_what_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On two ranks a run diverges and one replaces an unfinished run; then, on one rank, one is new."""
    out, good = Path("out"), "digits-cobo-lr0.1-s0"
    (out / good).mkdir(parents=True)
    (out / good / "metrics.jsonl").write_text('{"event": "torn')
    assert main(["optimizer.lr=1e15,0.1", *TINY, "--ranks", "2", "--out", "out"]) == 1
    said = capsys.readouterr()
    assert "[1/2] digits-cobo-lr1e+15-s0 ... failed (exit 1): the loss of client" in said.out
    assert f"[2/2] {good} ... done in " in said.out
    assert ", test accuracy 0." in said.out
    assert "2 runs: 1 done, 1 failed; see out" in said.out
    assert "failed: digits-cobo-lr1e+15-s0: the loss of client" in said.err
    assert (out / "logs" / f"{good}.log").stat().st_size > 0
    rows = table(out)
    assert [row["state"] for row in rows.values()] == ["failed", "done"]
    assert "optimizer.lr" in rows["digits-cobo-lr1e+15-s0"]["reason"]
    assert json.loads((out / good / "summary.json").read_text())["ranks"] == 2
    assert not (out / good / "figures").exists()
    assert 0 <= float(rows[good]["validation_accuracy"]) <= 1
    assert "optimizer.lr=0.1: validation accuracy" in (out / "best/digits-cobo.yaml").read_text()

    before = (out / good / "summary.json").stat()
    assert main(["optimizer.lr=0.1,0.2", *TINY, "--out", "out"]) == 0
    said = capsys.readouterr()
    assert f"[1/2] {good} ... skipped, done before" in said.out
    assert "[2/2] digits-cobo-lr0.2-s0 ... done in " in said.out
    assert "2 runs: 2 done (1 of them before)" in said.out
    assert (out / good / "summary.json").stat().st_mtime_ns == before.st_mtime_ns


def processes_of(folder: Path) -> list[str]:
    """The processes whose command line names a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{folder}/".encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
    return found


@pytest.mark.slow
def test_ctrl_c_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, seen = tmp_path / "out", []
    # A shell that starts the tests in the background makes them ignore SIGINT, as a sweep then would.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def is_training() -> bool:
        seen.extend(processes_of(out))
        return (out / "digits-cobo-s0" / "metrics.jsonl").exists()

    arguments = ["seed=0,1", "run.rounds=1000000", "model.hidden=[8]", "--out", str(out)]
    thread = in_a_moment(is_training, signal.SIGINT)
    try:
        assert main(arguments) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert len(set(seen)) >= 2, "torchrun and its rank"
    assert processes_of(out) == []
    said = capsys.readouterr()
    assert "[1/2] digits-cobo-s0 ... interrupted" in said.out
    assert "2 runs: 1 interrupted, 1 not started" in said.out
    assert "[2/2]" not in said.out
    assert "the same command goes on from here" in said.err
    assert [row["state"] for row in table(out).values()] == ["interrupted", "not started"]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "[1/2] digits-cobo-s0  go on (it has a checkpoint)" in said.out


def test_a_signal_that_a_launcher_repeats_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second one, a sweep no longer waits for the training's checkpoint."""
    stop = process.StopSignal()
    for now, times in ((100.0, 1), (104.0, 1), (106.0, 2)):
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        stop.handle(signal.SIGTERM, None)
        assert stop.times == times
