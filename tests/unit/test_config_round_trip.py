"""What is written reads back equal: configs by the dumper, text by arguments, files of earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cobo_dist.config import VARIANTS, Config, all_keys, as_argument, load_config, owners_of
from cobo_dist.errors import ConfigError

FIT_FOR_FILES = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
any_text = st.text(FIT_FOR_FILES, max_size=60) | st.sampled_from(
    [
        "", "~", "null", "on", "010", "1:30", "0o7", "<<", "=", "a #1", "'a'", '"a"', "''", "'", '"\\q"',
        "- a", "a: b",
    ]
)  # fmt: skip
floats = st.floats(0, 1e15)
configs = st.fixed_dictionaries(
    {
        "task.name": st.just("cross_silo"),  # which reads data.file
        "model.name": st.just("mlp"),
        "run.dir": any_text,
        "run.resume": any_text,
        "run.device": any_text,
        "data.root": any_text,
        "data.file": any_text,
        "run.seed": st.integers(0, 2**63),
        "run.rounds": st.integers(0, 2**63),
        "run.overwrite": st.booleans(),
        "optimizer.lr": floats,
        "algorithm.rho": floats,
        "algorithm.gamma": floats,
        "model.hidden": st.lists(st.integers(1, 1_000_000), max_size=4),
    }
)


def as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(configs)
def test_any_config_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    """By `to_yaml` through a file, and by `as_argument` through arguments."""
    config = load_config(
        None,
        [
            as_argument(k, v) if isinstance(v, str) else f"{k}={as_text(v)}"
            for k, v in values.items()
        ],
    )
    flat = config.flat()
    assert {key: flat[key] for key in values} == values
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(str(path), []) == config


def test_every_variant_and_every_name_of_a_key_reads_back_equal(tmp_path: Path) -> None:
    path, tried = tmp_path / "f.yaml", 0
    # A key that several owners have comes once for each of them.
    options = {(key, option) for key, field in all_keys() for option in get_args(field.annotation)}
    for key, option in sorted((key, one) for key, one in options if isinstance(one, str)):
        section, _, rest = key.partition(".")
        for owner in owners_of(section, rest) if section in VARIANTS else [""]:
            if key == f"{section}.name" and owner != option:
                continue
            name = [f"{section}.name={owner}"] if owner else []
            try:
                config = load_config(None, [*name, f"{key}={option}"])
            except ConfigError:
                continue  # not an option of this owner, or it needs other keys too
            path.write_text(config.to_yaml(), encoding="utf-8")
            assert load_config(str(path), []) == config
            tried += 1
    assert tried > 60, tried


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(any_text, max_size=4), any_text)
@example(["no", "sv"], "bytes")
def test_text_in_lists_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, languages: list[str], tokenizer: str
) -> None:
    task = {"name": "language", "languages": languages}
    model = {"name": "gpt2", "tokenizer": tokenizer, "lora_targets": languages}
    config = Config.model_validate({"task": task, "model": model})
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(str(path), []) == config


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(FIT_FOR_FILES).filter(lambda text: text[:1] not in "'\"" or not text))
def test_an_argument_takes_any_text_as_it_is(text: str) -> None:
    """Only text with quotes around all of it has to be quoted once more."""
    assert load_config(None, [f"run.dir={text}"]).run.dir == text


EARLIER = """\
run:
  dir: '1:30'
  overwrite: false
  seed: 3
  resume: never
  eval_splits:
  - test
  device: "a\\u20ACb"
optimizer:
  lr: 1.0e-05
  betas:
  - 0.9
  - 0.95
model:
  name: mlp
  hidden:
  - 64
  - 64
"""


def test_a_file_that_an_earlier_version_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(EARLIER)
    config = load_config(str(tmp_path / "config.yaml"), [])
    assert (config.run.dir, config.run.seed, config.run.device) == ("1:30", 3, "a€b")
    assert (config.optimizer.lr, config.run.eval_splits) == (1e-05, ("test",))
