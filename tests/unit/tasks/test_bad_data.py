"""Data that cannot be used is refused in one line before training, and no run folder is made."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from cobo_dist.cli.train import main
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.tasks.columns import numbered
from cobo_dist.tasks.registry import build_task
from cobo_dist.tasks.supervised import Supervised

BY_COLUMN = "task.partition.name=by_column"
ROWS = 40


def build(task: str, *settings: str) -> Supervised:
    clients = [] if BY_COLUMN in settings else ["task.partition.clients=2"]
    config = load_config(None, [f"task.name={task}", *clients, *settings])
    built = build_task(config.task, config.model, config.data, 0, torch.float32)
    assert isinstance(built, Supervised)
    return built


def refusal(task: str, *settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(task, *settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def csv(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return ["task.source.name=csv", f"task.source.file={path}"]


def rows(header: str, row: str) -> bytes:
    """Return a CSV whose rows are a pattern of i, k = i % 2 and x = i / 2."""
    lines = [row.format(i=i, k=i % 2, x=i / 2) for i in range(ROWS)]
    return "\n".join([header, *lines]).encode()


def with_fourth(header: str, row: str, other: str) -> bytes:
    """Return the same with another fourth row."""
    lines = rows(header, row).split(b"\n")
    lines[4] = other.encode()
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (rows("a,label", "{i},{k}").decode().encode("utf-16"), "write it as UTF-8 with a header"),
        (rows("a,a,label", "{i},{i},{k}"), "has several columns called 'a'"),
        (rows("label,a,label", "{i},{i},{k}"), "has several columns called 'label'"),
        (rows("a,label", "{i},{i},{k}"), "rows have more fields than the 2 of the header"),
        (rows("a,b,label", "{i},{k}"), "label (task.source.label) is empty or NaN in 40"),
        (rows("a;label", "{i};{k}"), "task.source.label=label is no column"),
        (rows("a,label", "2024-01-02,{k}"), "column a holds '2024-01-02' in row 1"),
        (rows("a,label", '"{i},5",{k}'), "column a holds '0,5' in row 1"),
        (with_fourth("a,label", "{i},{k}", "x" * 1_000_000 + ",1"), "column a holds 'xxxx"),
        (with_fourth("a,label", "{i},{k}", "1\0,1"), r"column a holds '1\x00' in row 4"),
        (with_fourth("a,label", "{i},{k}", '"1,1'), "EOF inside string"),
        (with_fourth("a,label", "{i},{k}", "1e400,1"), "a is empty, NaN or infinite in 1"),
        (with_fourth("a,label", "{i},{k}", ",1"), "first in row 4; fill or drop them"),
        (rows("a,label", "-1.7e308,{k}").replace(b"-1.7e308,1", b"1.7e308,1"), "too large"),
        (b"\n\n", "cannot be read as csv"),
        (rows("1,1,2", "{i},{i},{k}"), "several columns called '1'; its header has numbers alone"),
        (rows("0.5,1", "{i},{k}"), "it seems to lack one; write names as its first line"),
    ],
)  # fmt: skip
def test_bad_csv_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in refusal("classification", *csv(tmp_path / "t.csv", content))


def test_a_mark_of_byte_order_is_no_part_of_a_name(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + rows("label,a", "{k},{i}")
    assert build("classification", *csv(tmp_path / "t.csv", content)).examples.outputs == 2


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        (rows("a,label", "{i},{k}"), [BY_COLUMN], "has no column of clients"),
        (with_fourth("a,label,client", "{i},{k},c", "1,1,nan"), [BY_COLUMN], "is empty or NaN in 1 of"),
        (with_fourth("a,label,client", "{i},{k},c", "1,1,"), [BY_COLUMN], "first in row 4"),
        (with_fourth("a,label,client", "{i},{k},c", "1,1,z"), [BY_COLUMN], "client 1 (z) 1 of 40 examples"),
        (rows("a,u,v", "{i},{i},{k}"), ["task.source.label=[u,v]"], "there are 2 targets"),
    ],
)  # fmt: skip
def test_bad_columns_of_clients_and_labels_are_refused(
    tmp_path: Path, content: bytes, settings: list[str], expected: str
) -> None:
    given = csv(tmp_path / "t.csv", content)
    assert expected in refusal("classification", *given, *settings)
    folder = tmp_path / "run"
    run = ["task.name=classification", *given, *settings, f"run.dir={folder}"]
    assert main(run) == 2
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        (with_fourth("a,label", "{i},{x}", "1,nan"), [], "label (task.source.label) is empty or NaN in 1"),
        (with_fourth("a,label", "{i},{x}", "1,inf"), [], "NaN or infinite, first of example 4"),
        (with_fourth("a,label", "{i},{x}", "1,much"), [], "targets are text such as 'much'"),
        (rows("a,label", "{i},2024-01-02"), [], "targets are text such as '2024-01-02'"),
        (rows("a,label", "{i},7"), [], "there is nothing to predict"),
        (rows("a,u,v", "{i},{x},b{k}"), ["task.source.label=[u,v]"], "v (task.source.label) holds 'b0'"),
        (rows("a,u,v", "{i},{x},{k}"), ["task.source.label=[u,u]"], "names a column twice"),
    ],
)  # fmt: skip
def test_bad_targets_are_refused(
    tmp_path: Path, content: bytes, settings: list[str], expected: str
) -> None:
    assert expected in refusal("regression", *csv(tmp_path / "t.csv", content), *settings)


def test_several_columns_are_several_targets(tmp_path: Path) -> None:
    given = csv(tmp_path / "t.csv", rows("a,u,v", "{i},{x},{k}"))
    task = build("regression", *given, "task.source.label=[u,v]")
    assert task.examples.outputs == 2
    assert task.examples.inputs.shape == (ROWS, 1)


A_DAY = datetime.date(2024, 1, 2)
PLAIN = {"a": [float(i) for i in range(ROWS)], "label": [i % 2 for i in range(ROWS)]}


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"a": [{"x": 1.0}] * ROWS}, [], "column a holds \"{'x': 1.0}\" in row 1"),
        ({"a": [[1.0, 2.0]] * ROWS}, [], "column a holds '[1. 2.]' in row 1"),
        ({"a": [A_DAY] * ROWS}, [], "column a holds '2024-01-02' in row 1"),
        ({"a": [datetime.datetime(2024, 1, 2)] * ROWS}, [], "holds '2024-01-02 00:00:00'"),
        ({"a": [datetime.timedelta(1)] * ROWS}, [], "column a holds '1 days"),
        ({"a": [b"abc"] * ROWS}, [], "column a holds \"b'abc'\" in row 1"),
        ({"a": [1.0, None] * (ROWS // 2)}, [], "empty, NaN or infinite in 20 of 40 rows, first in row 2"),
        ({"label": [[1]] * ROWS}, [], "holds '[1]', which is neither number nor text"),
        ({"label": [{"q": 1}] * ROWS}, [], "which is neither number nor text"),
        ({"label": [None] * ROWS}, [], "is empty or NaN in 40 of 40 rows"),
        ({"client": [[1]] * ROWS}, [BY_COLUMN], "which is neither number nor text"),
        ({"client": [1.5, 2.0] * (ROWS // 2)}, [BY_COLUMN], "holds fractions such as 1.5"),
        ({"a": [], "label": []}, [], "has no rows"),
    ],
)  # fmt: skip
def test_bad_parquet_is_refused(
    tmp_path: Path, columns: dict[str, list[object]], settings: list[str], expected: str
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "t.parquet"
    parquet.write_table(arrow.table({**PLAIN, **columns}), file)
    given = ["task.source.name=parquet", f"task.source.file={file}"]
    assert expected in refusal("classification", *given, *settings)


def test_parquet_takes_categories_decimals_and_names_with_dots(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = arrow.array(["p", "q"] * (ROWS // 2)).dictionary_encode()
    large = np.arange(ROWS, dtype=np.uint64) % 2 + np.uint64(2**63)
    columns = {"a.b": PLAIN["a"], "a": PLAIN["a"], "label": large, "client": names}
    file = tmp_path / "t.parquet"
    parquet.write_table(arrow.table(columns), file)
    given = ["task.source.name=parquet", f"task.source.file={file}", BY_COLUMN]
    task = build("classification", *given)
    assert task.names == ("p", "q")
    assert task.examples.inputs.shape == (ROWS, 2)
    assert list(task.label_names) == [str(2**63), str(2**63 + 1)]
    twice = arrow.Table.from_arrays([PLAIN["a"]] * 3, names=["a", "a", "label"])
    parquet.write_table(twice, file)
    assert "has several columns called 'a'" in refusal("classification", *given[:2])


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x_train": np.array([object()] * ROWS, dtype=object)}, "npz: it holds Python objects"),
        ({"y_train": np.array([1, "a"] * 20, dtype=object)}, "convert them to numbers or text"),
        ({"x_train": np.ones((ROWS, 3)) + 1j}, "x_train is complex128"),
        ({"x_train": np.zeros(ROWS, dtype=[("a", float)])}, "x_train is [('a', '<f8')]"),
        ({"x_train": np.zeros((ROWS, 3), dtype="datetime64[s]")}, "x_train is datetime64[s]"),
        ({"x_train": np.ones(ROWS)}, "x_train is float64 [40]"),
        ({"x_train": np.full((ROWS, 3), np.inf, np.float16)}, "x_train[0] holds a NaN or an infinity"),
        ({"x_train": np.full((ROWS, 3), 1e300)}, "too large to be standardized"),
        ({"y_train": np.array(3)}, "y_train is int64 []"),
        ({"y_train": np.array([b"a", b"b"] * 20)}, "labels are |S1"),
        ({"y_train": np.array([0, np.nan] * 20)}, "nan is no label"),
    ],
)  # fmt: skip
def test_bad_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], expected: str
) -> None:
    file = tmp_path / "t.npz"
    np.savez(file, **{"x_train": np.ones((ROWS, 3)), "y_train": np.arange(ROWS) % 2, **arrays})
    given = ["task.source.name=npz", f"task.source.file={file}"]
    assert expected in refusal("classification", *given)


def test_numbers_that_run_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    given = csv(tmp_path / "t.csv", rows("a,label", "{i}e300,{k}"))
    message = refusal("classification", *given, "task.standardize=false")
    assert (
        "column a has numbers too large for float32; divide them or set task.source.drop=[a]"
        in message
    )
    message = refusal("regression", *csv(tmp_path / "t.csv", rows("a,b,label", "{i},{i}e300,{i}")))
    assert "column b has numbers too large to be standardized" in message


@pytest.mark.parametrize("task", ["classification", "regression", "digits", "quadratic"])
def test_a_folder_that_the_task_does_not_read_is_refused(task: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"data\.root=/x is not read by task\.name={task}, but by"
    ):
        load_config(None, [f"task.name={task}", "data.root=/x"])


@pytest.mark.parametrize(
    "values",
    [
        np.array([5, 3, 5, 3]), np.array([-128, 127, 0], np.int8), np.array([2**63, 2**63 + 2], np.uint64),
        np.array([0, 2**61]), np.array([0, 1, 0]), np.array([-(2**63), 2**63 - 1]), np.array(["b", "a", "b"]),
        np.array([1.5, 0.5]), np.array([True, False]), np.array([], int), np.array([65535, 0], np.uint16),
    ],
    ids=lambda one: f"{one.dtype} {one[:2]}",
)  # fmt: skip
def test_numbered_equals_sorting(values: np.ndarray) -> None:
    own, numbers = numbered(values)
    expected, inverse = np.unique(values, return_inverse=True)
    assert own.tolist() == expected.tolist()
    assert own.dtype == values.dtype
    assert numbers.tolist() == inverse.tolist()
