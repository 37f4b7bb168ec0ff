"""Source `text`: a column of texts as token ids, what it refuses, and an example that makes one."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from problems import QUIET, write_texts

from cobo_dist.cli.prepare import main as prepare
from cobo_dist.cli.train import main
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.results.run import open_run
from cobo_dist.tasks.labeled import Classification
from cobo_dist.tasks.registry import build_task
from cobo_dist.tasks.text_format import text_format

ROOT = Path(__file__).parents[3]
TEXTS = ["NA", "007", "null", "héé", 'a,"b"\nc', "x" * 50] * 4
TABLE = {"text": TEXTS, "label": ["NA", "b"] * 12, "client": ["007", "8"] * 12}


def settings_of(path: Path, **columns: object) -> list[str]:
    """Write a table, with some columns replaced or left out, and return the settings that read it."""
    table = pd.DataFrame({k: v for k, v in {**TABLE, **columns}.items() if v is not None})
    table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path)
    return [
        "task.name=classification", "task.source.name=text", f"task.source.file={path}",
        "task.source.length=8", "model.name=gru", "task.partition.name=by_column", *QUIET,
    ]  # fmt: skip


def task_of(settings: list[str]) -> Classification:
    config = load_config(None, settings)
    task = build_task(config.task, config.model, config.data, 0, torch.float64)
    assert isinstance(task, Classification)
    return task


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_texts_become_bytes_and_stay_whole_numbers(tmp_path: Path, suffix: str) -> None:
    """The word NA is a text and a label; 007 keeps its zeros; the id 256 fills up; a long text is cut."""
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    task = task_of(settings_of(tmp_path / f"t.{suffix}"))
    found = task.examples.inputs
    assert (found.dtype, tuple(found.shape)) == (torch.int64, (24, 8))
    for row, text in zip(found.tolist(), TEXTS, strict=True):
        assert row == [*text.encode()[:8], *[256] * (8 - len(text.encode()[:8]))]
    assert task.label_names == ("NA", "b")
    assert task.names == ("007", "8")
    assert task.examples.vocabulary == 257
    inputs, _ = task.training([0, 1], torch.device("cpu")).batch(0, "local")
    assert inputs.dtype == torch.int64, "neither cast nor scaled"
    facts = task.model_facts()
    assert facts["text"] == {"tokenizer": "bytes", "length": 8, "vocabulary": 257}
    assert (facts["scale"], facts["offset"], facts["input_shape"]) == (1.0, 0.0, [8])


def test_a_tokenizer_from_a_local_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tokens and special tokens; one more id fills up. The saved model finds it again."""
    transformers = pytest.importorskip("transformers", reason="needs the extra lm")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "yes": 1, "no": 2, "maybe": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.save_pretrained(str(tmp_path / "tokenizer"))
    form = text_format(str(tmp_path / "tokenizer"), 3)
    assert form.vocabulary == 5
    assert form.encode(["yes no", "what", "no no no no"]).tolist() == [
        [1, 2, 4],
        [0, 4, 4],
        [2, 2, 2],
    ]
    settings = settings_of(
        tmp_path / "t.csv", text=["yes", "no"] * 12, client=["a", "a", "b", "b"] * 6
    )
    settings += [f"task.source.tokenizer={tmp_path / 'tokenizer'}", "task.source.length=3"]
    assert prepare(settings) == 0
    assert f"found       tokenizer {tmp_path / 'tokenizer'}" in capsys.readouterr().out
    more = [
        "run.rounds=30",
        "optimizer.name=adamw",
        "optimizer.lr=0.05",
        f"run.dir={tmp_path / 'run'}",
    ]
    assert main([*settings, *more]) == 0
    assert open_run(tmp_path / "run").model(0).predict(["yes", "no"]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("columns", "more", "words"),
    [
        ({"text": ["", *TEXTS[1:]]}, [], "column text (task.source.text) is empty or NaN in 1 of 24 rows"),
        ({"label": None}, [], "task.source.label=label is no column of"),
        ({"client": [None, *TABLE["client"][1:]]}, [], "column client (task.source.client) is empty"),
        ({}, ["task.source.client=label"], "name a column twice"),
        ({}, ["task.source.client=owner"], "task.source.client=owner is no column of"),
        ({}, ["model.name=mlp"], "model.name=mlp takes numbers, and this task's inputs are text"),
        ({}, ["task.change.name=noise"], "scale and noise change numbers, and the inputs are text"),
        ({}, ["task.change.name=rotation"], "task.change.name=rotation takes images"),
        ({}, ["task.source.tokenizer=./none"], "task.source.tokenizer=./none is no folder"),
        ({}, ["task.source.tokenizer={folder}"], "has no files of a tokenizer, such as tokenizer.json"),
        ({}, ["model.name=hf", "model.width=9", "model.heads=2"], "model.heads=2 does not divide"),
        ({}, ["task.source.file=none.txt"], "is no file FILE.csv or FILE.parquet"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_texts_is_refused(
    tmp_path: Path, columns: dict[str, object], more: list[str], words: str
) -> None:
    more = [one.format(folder=tmp_path) for one in more]
    with pytest.raises(ConfigError) as caught:
        task_of([*settings_of(tmp_path / "t.csv", **columns), *more])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_in_a_column_of_texts_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match="which is no text; convert it"):
        task_of(settings_of(tmp_path / "t.parquet", text=np.arange(24)))


def test_a_column_that_is_not_used_is_named(tmp_path: Path) -> None:
    task = task_of(settings_of(tmp_path / "t.csv", page=range(24)))
    assert any("page is not used" in notice for notice in task.notices)


def test_the_example_makes_pieces_of_every_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_texts(tmp_path / "texts")
    for file in folder.glob("*.txt"):
        file.write_text("\n".join(f"{line} {file.stem * 50}" for line in range(60)))
    given = ["text_fragments.py", str(folder), str(tmp_path / "new" / "t.csv")]
    monkeypatch.setattr(sys, "argv", given)
    runpy.run_path(str(ROOT / "examples/text_fragments.py"), run_name="__main__")
    assert "3,000 pieces of 3 languages" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "new" / "t.csv")
    assert table["label"].value_counts().to_dict() == {"x": 1000, "y": 1000, "z": 1000}
    assert all(
        one.count(label) >= 27 for one, label in zip(table["text"], table["label"], strict=True)
    )
    config = load_config(str(ROOT / "configs/cpu/lstm_text.yaml"), [f"task.source.file={given[2]}"])
    task = build_task(config.task, config.model, config.data, 0, torch.float32)
    assert (task.clients, len(set(task.clusters or ()))) == (12, 3)
