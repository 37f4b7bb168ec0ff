"""A hint is a change that helps: every one is applied to the config, and its error must be gone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cobo_dist.config import VARIANTS, all_keys, load_config
from cobo_dist.errors import ConfigError

KEYS = sorted({key for key, _ in all_keys()})
MAX_STEPS = 12


def message_of(arguments: Sequence[str]) -> str:
    """Return the one line with which arguments are refused; empty if they are not."""
    try:
        load_config(None, arguments)
    except ConfigError as error:
        return str(error)
    return ""


def apply_hint(message: str, arguments: Sequence[str]) -> list[list[str]]:
    """Return the arguments with the hint of a message followed, once for each way that it offers."""
    message = re.sub(r" \(and \d+ more\)$", "", message)
    key = re.split(r"=| is | must | means | and ", message, maxsplit=1)[0]
    if meant := re.search(r"known key; did you mean (\S+?)(?:, a key of (\S+))?\?$", message):
        extra = [meant[2]] if meant[2] else []
        return [[*(_renamed(one, key, meant[1]) for one in arguments), *extra]]
    if meant := re.search(r" is none of .*; did you mean (\S+)\?$", message):
        item = re.fullmatch(r"(.*)\.\d+", key)
        return [[*arguments, f"{item[1]}=[{meant[1]}]" if item else f"{key}={meant[1]}"]]
    if "; write it without quotes" in message:
        value = re.search(r"=['\"](.*?)['\"] is refused", message)
        assert value
        return [_set(arguments, key, value[1])]
    if meant := re.search(r"; write (-?\d+)$", message):
        return [_set(arguments, key, meant[1])]
    if meant := re.search(r", for example (\S+?)=(.+)$", message):
        value = meant[2]
        if value == "...":
            value = next(one for one in arguments if one.startswith(f"{key}=")).partition("=")[2]
        return [[*_without(arguments, key), f"{meant[1]}={value}"]]
    if meant := re.search(r"drop it or set (\S+=\w[\w-]*)", message):
        culprit = message.split("=")[0].split(" ")[0]
        return [
            _without(arguments, culprit),
            [*_without(arguments, meant[1].split("=")[0]), meant[1]],
        ]
    if meant := re.search(r"; use (\S+=\w+)", message):
        return [[*arguments, meant[1]]]
    if meant := re.search(r"; leave (\S+) at (\w+)", message):
        return [[*arguments, f"{meant[1]}={meant[2]}"]]
    if meant := re.search(r"it must be (?:greater|less) than or equal to (\S+)$", message):
        return [_set(arguments, key, meant[1])]
    if message.endswith("drop one of the two"):
        return [[one for one in arguments if repr(one) not in message]]
    return []


def _renamed(argument: str, old: str, new: str) -> str:
    key, _, value = argument.partition("=")
    return f"{new}={value}" if key == old or old.startswith(f"{key}.") else argument


def _set(arguments: Sequence[str], key: str, value: str) -> list[str]:
    item = re.fullmatch(r"(.*)\.\d+", key)
    return [*arguments, f"{item[1]}=[{value}]" if item else f"{key}={value}"]


def _without(arguments: Sequence[str], key: str) -> list[str]:
    return [one for one in arguments if not one.startswith((f"{key}=", f"{key}."))]


def error_of(message: str) -> str:
    """Return what a message says is wrong, without the hint and the value of other mistakes."""
    return re.split(r"; | \(and \d+ more\)|, for example", message, maxsplit=1)[0]


def follow(arguments: Sequence[str]) -> None:
    """Follow hints until there are none; no error may come back, but for one key that is written twice."""
    seen: set[tuple[str, int]] = set()
    for _ in range(MAX_STEPS):
        message = message_of(arguments)
        if not message:
            return
        step = error_of(message), len(arguments)
        assert step not in seen, f"{arguments}: {message}"
        seen.add(step)
        ways = apply_hint(message, arguments)
        for way in ways:
            assert error_of(message_of(way)) != error_of(message), (
                f"{arguments} -> {way}: {message}"
            )
        if not ways:
            return
        arguments = ways[0]
    raise AssertionError(f"hints do not end: {arguments}")


# -- the cases that were circular ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint", "better"),
    [
        ("algorithm.rho: 0.5", "write algorithm: {rho: ...}", "algorithm: {rho: 0.5}"),
        (
            "algorithm: {sampling.rate: 2}",
            "write algorithm: {sampling: {rate: ...}}",
            "algorithm: {sampling: {rate: 2}}",
        ),
        (
            "algorithm.sampling: {rate: 2}",
            "write algorithm: {sampling: {rate: ...}}",
            "algorithm: {sampling: {rate: 2}}",
        ),
        (
            "algorithm: {name: cobo, sampling.rate: 2}",
            "write algorithm: {sampling: {rate: ...}}",
            "algorithm: {name: cobo, sampling: {rate: 2}}",
        ),
        ("run.dir: x", "write run: {dir: ...}", "run: {dir: x}"),
        ("run: {<<: {seed: 1}}", "no merge keys in YAML 1.2; write the keys", "run: {seed: 1}"),
    ],
)
def test_hints_for_files(tmp_path: Path, text: str, hint: str, better: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), [])
    assert hint in str(caught.value)
    assert "did you mean" not in str(caught.value)
    assert "belongs to" not in str(caught.value)
    path.write_text(better)
    load_config(str(path), [])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["algorithm.cobo.rho=1"], "did you mean algorithm.rho?"),
        (["algorithm.name=local", "algorithm.rh0=1"],
         "did you mean algorithm.rho, a key of algorithm.name=cobo?"),
        (["algorithm.lambda_=1"], "did you mean algorithm.lambda, a key of algorithm.name=ditto?"),
        (["optimizer.sampling.rate=1"], "did you mean algorithm.sampling.rate?"),
        (["RUN.Seed=1"], "did you mean run.seed?"),
        (["algorithm.name=COBO"], "did you mean cobo?"),
        (["algorithm=local"], "for example algorithm.name=local"),
        (["model=resnet9"], "for example model.name=resnet9"),
        (["algorithm.sampling=2"], "for example algorithm.sampling.name=..."),
        (["run.rounds=1e3"], "write 1000"),
        (["run.rounds='10'"], "write it without quotes"),
        (["optimizer.lr='0.1'"], "write it without quotes"),
        (["model.hidden=64"], "for example model.hidden=[64, 64]"),
        (["optimizer.betas=0.9"], "for example optimizer.betas=[0.9, 0.95]"),
        (["run.eval_splits=test"], "for example run.eval_splits=[test]"),
        (["run.rounds=5", "run.rounds.x=1"], "drop one of the two"),
        (["optimizer.betas=[0.8, 0.9]"], "set optimizer.name=adamw"),
        (["optimizer.name=adamw", "optimizer.momentum=0.5"], "set optimizer.name=sgd"),
        (["optimizer.warmup=0.5"], "set optimizer.schedule=one_cycle"),
        (["algorithm.own_weight=included"], "set algorithm.domain=simplex"),
        (["algorithm.domain=simplex", "algorithm.start=zeros"], "use algorithm.start=ones"),
        (["comm.deterministic=true", "run.engine=vectorised"], "leave run.engine at auto"),
        (["comm.deterministic=true", "comm.dtype=bfloat16"], "leave comm.dtype at model"),
        (["comm.deterministic=true", "run.threads=3"], "leave run.threads at 0"),
        (["data.file=/nope.npz"], "is not read by task.name=digits, but by cross_silo, cross_device"),
        (["task.name=quadratic", "data.text_dir=/nope"], "drop it or set task.name=language"),
        (["task.partition.alpha=1"], "drop it or set task.name=classification"),
        (["task.name=classification", "task.partition.alpha=1"],
         "task.partition.alpha is no key of task.partition.name=iid; it belongs to dirichlet, "
         "pfllib_dirichlet, quantity"),
        (["task.name=classification", "task.partition.name=dirichet"], "did you mean dirichlet?"),
        (["task.name=classification", "task.partition.aplha=1"], "did you mean task.partition.alpha?"),
        (["task.name=classification", "task.source=csv"], "for example task.source.name=csv"),
    ],
)  # fmt: skip
def test_hints_for_arguments(arguments: list[str], hint: str) -> None:
    assert hint in message_of(arguments)
    assert apply_hint(message_of(arguments), arguments)
    follow(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.rounds=5", "run.rounds.x=1"],
        ["algorithm.rho.x=1"],
        ["run.dir.x=1"],
        ["run.seed.a.b=1"],
    ],
)
def test_a_value_is_not_told_to_be_a_group(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "f.yaml").write_text("run: {rounds: 5, dir: x, seed: 1}\nalgorithm: {rho: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path / "f.yaml"), arguments)
    assert "must be a group" not in str(caught.value)


@pytest.mark.parametrize("key", ["run.zzz", "algorithm.xyz", "algorithm.samplin", "q"])
def test_no_hint_is_better_than_one_that_does_not_help(key: str) -> None:
    assert message_of([f"{key}={{}}"]) == f"{key} is not a known key; --help all lists the keys"


# -- any mistake -----------------------------------------------------------------------------------


def mistyped(key: str, place: int, letter: str, kind: str) -> str:
    """Return a key with one mistake in it."""
    at = place % len(key)
    changed = {
        "missing": key[:at] + key[at + 1 :],
        "doubled": key[:at] + key[at] + key[at:],
        "other": key[:at] + letter + key[at + 1 :],
        "more": f"{key}.{letter}",
        "upper": key.upper(),
        "last": key.rpartition(".")[2],
        "inserted": f"{key.partition('.')[0]}.{letter}.{key.partition('.')[2]}",
        "section": f"{letter}.{key.partition('.')[2]}",
        "variant": f"{key.partition('.')[0]}.cobo.{key.partition('.')[2]}",
        "none": key,
    }
    return changed[kind]


KINDS = (
    "missing",
    "doubled",
    "other",
    "more",
    "upper",
    "last",
    "inserted",
    "section",
    "variant",
    "none",
)
mistakes = st.builds(
    mistyped,
    st.sampled_from(KEYS),
    st.integers(0, 40),
    st.sampled_from(["x", "s", "algorithm", "run", "0", "_"]),
    st.sampled_from(KINDS),
)
wrong_values = st.sampled_from(
    ["1", "-1", "0.5", "1e3", "'2'", "\"0.5\"", "true", "yes", "null", "word", "[1]", "[a, b]", "{}",
     "{x: 1}", "coob", "adam", "Local", "simplex", "included", "mixd", "1e30", "[0.5, 0.5]", "bfloat16",
     "0", "2"]
)  # fmt: skip
names = st.sampled_from(
    [f"{section}.name={name}" for section, kinds in VARIANTS.items() for name in kinds]
)
wrong_arguments = st.lists(
    st.tuples(mistakes, wrong_values).map("=".join) | names, min_size=1, max_size=3
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(wrong_arguments)
@example(["algorithm.name=cobo", "algorithm.rho.x=1"])
@example(["optimizer.momentum=0.5", "optimizer.betas=[0.5, 0.5]"])
def test_following_hints_gets_rid_of_each_error(arguments: list[str]) -> None:
    if all(re.match(r"[^=.-][^=]*=", one) for one in arguments):
        follow(arguments)
