"""The schema of what a run leaves: rows as objects, arrays by shape, the page that describes them."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

from cobo_dist.storage import array_schema as arrays
from cobo_dist.storage import schema
from cobo_dist.storage.reading import SchemaError, read_record, read_row

DOCS = Path(__file__).parents[3] / "docs"
files_page = run_path(str(DOCS / "files_page.py"))


def test_the_page_is_up_to_date() -> None:
    """If this fails, run docs/files_page.py."""
    text = (DOCS / "FILES.md").read_text(encoding="utf-8")
    assert files_page["page"](text) == text


def test_every_field_is_described() -> None:
    records = {**files_page["RUN_RECORDS"], **files_page["CHECKPOINT_RECORDS"]}
    for record in chain.from_iterable(records.values()):
        assert record.__doc__
        for name, field in record.model_fields.items():
            assert field.description or name == "event", (record, name)


ROWS: list[schema.Row] = [
    schema.StartRow(format=2),
    schema.EvalRow(round=0, client=None, split="test", loss=0.5, examples=8),
    schema.RoundRow(round=1, seconds=0.1, pairs=3, loss=float("nan"), alignment=None),
    schema.WarningRow(round=1, kind="diverging", message="why"),
    schema.ProfileRow(round=1, seconds={"mixing": [0.1, 0.2]}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.event)
def test_a_row_reads_as_it_was_written(row: schema.Row) -> None:
    line = row.to_json()
    assert line.startswith(f'{{"event": "{row.event}"')
    again = read_row(line)
    assert type(again) is type(row)
    assert again.to_json() == line


def test_only_what_was_set_is_written_and_nan_is_null() -> None:
    row = schema.RoundRow(round=1, loss=float("inf"), alignment=None)
    assert json.loads(row.to_json()) == {
        "event": "round", "round": 1, "loss": None, "alignment": None,
    }  # fmt: skip


def test_other_events_are_left_to_versions_that_know_them() -> None:
    assert read_row(json.dumps({"event": "news", "round": "three"})) is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1], "not an object with an `event`"),
        ({}, "not an object with an `event`"),
        ({"event": "start", "format": schema.FORMAT + 1}, "update cobo_dist"),
        ({"event": "round"}, "round is None"),
        ({"event": "round", "round": True}, "round is True"),
        ({"event": "round", "round": 1, "news": "x"}, "news is 'x'"),
        ({"event": "eval", "round": 1, "accuracy": "high"}, "accuracy is 'high'"),
        ({"event": "profile", "round": 1, "seconds": {"mixing": 1}}, "seconds.mixing is 1"),
        ({"event": "profile", "round": 1, "seconds": [1]}, r"seconds is \[1\]"),
    ],
)
def test_a_malformed_row_is_refused_with_key_and_value(row: object, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        read_row(json.dumps(row))


def test_a_row_of_an_earlier_version_has_its_present_name() -> None:
    totals = dict.fromkeys(schema.TrafficRow.model_fields, 5) | {"peak_bytes": [1]}
    row = read_row(json.dumps(totals | {"event": "ledger"}))
    assert isinstance(row, schema.TrafficRow)
    assert row.bytes_mixing == 5


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / schema.SUMMARY_FILE
    summary = schema.Summary(format=2, rounds=3, seconds=0.5, bytes_sent=8, final={"loss": 1.0})
    path.write_text(summary.to_json())
    assert read_record(path, schema.Summary) == summary
    path.write_text(summary.model_copy(update={"format": 9}).to_json())
    with pytest.raises(SchemaError, match="it has format 9"):
        read_record(path, schema.Summary)
    path.write_text("{")
    with pytest.raises(SchemaError, match="it is not JSON"):
        read_record(path, schema.Summary)


# -- arrays --------------------------------------------------------------------------------------------

W_23 = {"rounds": np.arange(2), "weights": np.ones((2, 3, 3), dtype=np.float32)}


def test_arrays_of_a_layout() -> None:
    assert arrays.check_arrays(arrays.DENSE_WEIGHTS, W_23) == {"k": 2, "n": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rounds": np.ones(2)}, "`rounds` has type float64, not int64"),
        ({"weights": np.ones((2, 3, 4))}, r"`weights` has shape \(2, 3, 4\), not \[k, n, n\]"),
        ({"clusters": np.arange(4)}, r"`clusters` has shape \(4,\), not \[n\] with n = 3 clients"),
        ({"names": np.arange(3)}, "`names` has type int64, not str"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        arrays.check_arrays(arrays.DENSE_WEIGHTS, W_23 | change)
    with pytest.raises(SchemaError, match="no array `weights`"):
        arrays.check_arrays(arrays.DENSE_WEIGHTS, {})


def test_lists_must_go_together() -> None:
    lists = {
        "groups": np.zeros(3, dtype=int), "level": np.ones(1), "apart": np.zeros(3, dtype=bool),
        "counts": np.array([1, 0, 1]), "columns": np.array([2, 0]), "values": np.ones(2),
    }  # fmt: skip
    assert arrays.check_lists(lists) == {"n": 3, "m": 2}
    for change in ({"columns": np.array([2, 3])}, {"counts": np.array([1, 1, 1])}):
        with pytest.raises(SchemaError):
            arrays.check_lists(lists | change)
