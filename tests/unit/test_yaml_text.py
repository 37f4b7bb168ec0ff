"""YAML 1.2: the core schema, keys given twice, and texts that PyYAML expands for ever."""

from __future__ import annotations

import math
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cobo_dist.yaml_text import MAX_VALUES, Dumper, YamlError, core_value, read_yaml

DIGITS = "[" + "1," * 10 + "]"
BOMB = f"a0: &a0 {DIGITS}\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("NULL", None), ("nULL", "nULL"),
        ("true", True), ("True", True), ("TRUE", True), ("false", False), ("tRUE", "tRUE"),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("y", "y"), ("N", "N"),
        ("0", 0), ("-0", 0), ("+12", 12), ("010", 10), ("-010", -10), ("08", 8), ("0777", 777),
        ("0o10", 8), ("0x1F", 31), ("0O10", "0O10"), ("0X1F", "0X1F"), ("-0x1", "-0x1"), ("0o8", "0o8"),
        ("0b11", "0b11"), ("1_000", "1_000"), ("1,000", "1,000"), ("1:30", "1:30"), ("1:30.5", "1:30.5"),
        ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0), ("1E+3", 1000.0), ("1.5e-3", 0.0015), ("1_0.5", "1_0.5"),
        (".inf", math.inf), ("-.INF", -math.inf), ("+.Inf", math.inf), ("inf", "inf"), ("nan", "nan"),
        (".", "."), ("+", "+"), ("e3", "e3"), ("1e", "1e"), ("1 ", "1 "),
        ("\uff11", "\uff11"), ("\u0663", "\u0663"),
        ("2024-01-02", "2024-01-02"), ("2024-01-02 10:00:00", "2024-01-02 10:00:00"),
        ("=", "="), ("<<", "<<"), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = core_value(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_one() -> None:
    assert all(math.isnan(core_value(text)) for text in (".nan", ".NaN", ".NAN"))


def test_quoted_and_block_scalars_are_text() -> None:
    assert read_yaml("['1', \"true\", !!str 1, '']") == ["1", "true", "1", ""]
    assert read_yaml("|\n  1\n") == "1\n"


def test_text_keys_take_what_is_written() -> None:
    text = (
        "run: {dir: 0123, seed: 0123}\nnames: [no, 1:30, null, 2024-01-02, 1.10]\nother: [no, 010]"
    )
    found = read_yaml(text, lambda key: key in ("run.dir", "names"))
    assert found == {
        "run": {"dir": "0123", "seed": 123},
        "names": ["no", "1:30", "null", "2024-01-02", "1.10"],
        "other": ["no", 10],
    }


def test_keys_are_words() -> None:
    assert read_yaml("on: 1\n1: 2\nnull: 3\n010: 4") == {"on": 1, "1": 2, "null": 3, "010": 4}
    assert read_yaml("{<<: {a: 1}}") == {"<<": {"a": 1}}, "no merge"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 1\n", "a is given twice, on lines 1 and 3; keep one"),
        ("run:\n  seed: 1\n  'seed': 2\n", "run.seed is given twice, on lines 2 and 3"),
        ("a: {b: 1, c: 2,\n b: 3}", "a.b is given twice, on lines 1 and 2"),
        ("- {a: 1, a: 1}", "a is given twice, on line 1; keep one"),
        ("a: &x {b: 1}\nc: *x\na: *x", "a is given twice, on lines 1 and 3"),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(text: str, words: str) -> None:
    with pytest.raises(YamlError, match=words):
        read_yaml(text)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("x: 1\na: &a [*a]", 2, "contains itself"),
        ("&a {b: *a}", 1, "contains itself"),
        ("a: &a {b: &b [*a, *b]}", 1, "contains itself"),
        (BOMB, 1, "keys and values"),
        ("[" + "1," * (MAX_VALUES + 1) + "]", 1, "keys and values"),
        ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 500)), 1, "deep"),
        ("[" * 2000, None, "deep"),
        ("- " * 2000, None, "deep"),
        ("x: 1\na: !!int 5", 2, "tag !!int is not read; remove it"),
        ("a: !!python/object:os.system {}", 1, "tag !!python/object:os.system"),
        ("a: !own [1]", 1, "tag !own"),
        ("a: !!set {x}", 1, "tag !!set"),
        ('a: "\\UFFFFFFFF"', None, "OverflowError"),
        ("a\n\0", 2, "special characters"),
        ("x: 1\n? [a]\n: 1", 2, "a key must be a word"),
        ("a: *b", 1, "undefined alias"),
        ("a: 1\n---\na: 2", 2, "another document"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_what_is_not_read_is_refused_fast(text: str, line: int | None, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(YamlError, match=words) as caught:
        read_yaml(text)
    assert caught.value.line == line
    assert time.monotonic() - began < 20


def test_an_alias_is_a_copy() -> None:
    found = read_yaml("a: &x {b: [1]}\nc: *x")
    found["a"]["b"].append(2)
    assert found["c"] == {"b": [1]}


def test_nothing_may_follow_a_whole_value() -> None:
    assert read_yaml(" [1] ", whole=True) == [1]
    for text in ("[1] # five", "'a' # b"):
        with pytest.raises(YamlError, match="follows the value"):
            read_yaml(text, whole=True)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ambiguous = st.sampled_from(
    [
        "010",
        "0o17",
        "0x1F",
        "1:30",
        "on",
        "No",
        "null",
        "~",
        "1e3",
        "1_0",
        "2024-01-02",
        "=",
        "<<",
        ".inf",
    ]
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.recursive(
        scalars | ambiguous,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_what_the_dumper_writes_reads_back_equal(value: object) -> None:
    text = yaml.dump(value, Dumper=Dumper, sort_keys=False)
    assert read_yaml(text) == value
    assert yaml.safe_load(text) == value, "YAML 1.1 reads it too"
