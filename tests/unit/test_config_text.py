"""Configs are read as written: in files, arguments, lists and sweeps alike."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cobo_dist.config import all_keys, load_config
from cobo_dist.config.from_python import config_of
from cobo_dist.config.loading import MAX_FILE_BYTES
from cobo_dist.config.schema import text_keys
from cobo_dist.errors import ConfigError
from cobo_dist.run_config import RunConfig
from cobo_dist.sweeps.axes import read_axes
from cobo_dist.sweeps.grid import expand

LANGUAGE = ("task.name=language", "model.name=tiny-gpt2")


def refusal(*arguments: str, file: str | os.PathLike[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None if file is None else str(file), arguments)
    message = str(caught.value)
    assert message.splitlines() == [message], "one line"
    return message


def axes_refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_axes(arguments)
    return str(caught.value)


def value_in_file(folder: Path, key: str, written: str) -> object:
    """Return the value of a key that a file gives as `written`."""
    *path, last = key.split(".")
    indented = [f"{'  ' * depth}{step}:" for depth, step in enumerate(path)]
    (folder / "f.yaml").write_text("\n".join([*indented, f"{'  ' * len(path)}{last}: {written}"]))
    return load_config(str(folder / "f.yaml"), []).flat()[key]


# -- numbers, booleans and words -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("run.seed", "010", 10), ("run.seed", "08", 8), ("run.seed", "+7", 7), ("run.seed", "0o10", 8),
        ("run.seed", "0x1F", 31), ("run.rounds", "0100", 100),
        ("optimizer.lr", "010", 10.0), ("optimizer.lr", "1e-3", 0.001), ("optimizer.lr", ".5", 0.5),
        ("optimizer.lr", "5.", 5.0), ("run.overwrite", "TRUE", True), ("run.overwrite", "False", False),
        ("model.hidden", "[010, 0x10]", [10, 16]), ("optimizer.betas", "[0, 00.5]", [0.0, 0.5]),
        ("run.dir", "0123", "0123"), ("run.dir", "on", "on"), ("run.dir", "1:30", "1:30"),
        ("run.dir", "1.10", "1.10"), ("run.dir", "1_000", "1_000"), ("run.dir", "null", "null"),
        ("run.dir", "2024-01-02", "2024-01-02"), ("run.dir", "=", "="), ("run.dir", "<<", "<<"),
        ("run.dir", "0o17", "0o17"), ("run.dir", ".inf", ".inf"), ("run.dir", "True", "True"),
        ("run.dir", "", ""), ("run.dir", "'0123'", "0123"), ("run.dir", '"a\\tb"', "a\tb"),
        ("run.device", "1e5", "1e5"),
    ],
)  # fmt: skip
def test_a_value_means_the_same_in_a_file_an_argument_and_a_sweep(
    tmp_path: Path, key: str, written: str, value: object
) -> None:
    more = ("optimizer.name=adamw",) if key == "optimizer.betas" else ()
    found = load_config(None, [*more, f"{key}={written}"]).flat()[key]
    assert found == value
    if not more:
        assert value_in_file(tmp_path, key, written) == found
    if key not in ("run.dir", "run.overwrite"):
        (run,) = expand([], read_axes([*more, f"{key}={written}"]))
        assert run.config.flat()[key] == found


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("optimizer.lr", "1:30"), ("optimizer.lr", "1_0"), ("optimizer.lr", "0b1"), ("optimizer.lr", "1,5"),
        ("run.seed", "1:30"), ("run.seed", "1_000"), ("run.seed", "0b11"), ("run.seed", "0o8"),
        ("run.seed", "5 #1"), ("run.seed", "#1"), ("run.seed", "2024-01-02"), ("run.seed", "1.0"),
        ("run.seed", "9" * 5000), ("run.seed", "0x" + "f" * 5000),
        ("run.overwrite", "yes"), ("run.overwrite", "no"), ("run.overwrite", "on"), ("run.overwrite", "y"),
        ("run.overwrite", "tRUE"), ("run.overwrite", "0"), ("run.overwrite", "''"),
    ],
)  # fmt: skip
def test_what_is_no_number_or_boolean_is_refused(tmp_path: Path, key: str, written: str) -> None:
    message = refusal(f"{key}={written}")
    assert message.startswith(f"{key}=")
    assert " is refused: it must be " in message
    assert len(message) < 700
    if "#" not in written:
        with pytest.raises(ConfigError, match="is refused: it must be "):
            value_in_file(tmp_path, key, written)


def test_items_of_text_lists_are_text(tmp_path: Path) -> None:
    written = "[no, sv, on, 010, 1:30, null, 1.10]"
    wanted = ("no", "sv", "on", "010", "1:30", "null", "1.10")
    argument = load_config(None, [*LANGUAGE, f"task.languages={written}"])
    (tmp_path / "f.yaml").write_text(f"task: {{name: language, languages: {written}}}")
    assert argument.task.languages == wanted
    assert load_config(str(tmp_path / "f.yaml"), []).task.languages == wanted
    (run,) = expand([], read_axes([*LANGUAGE, f"task.languages={written}"]))
    assert run.config.task.languages == wanted
    (tmp_path / "f.yaml").write_text("task:\n  name: language\n  languages:\n  - no\n  - 010\n")
    assert load_config(str(tmp_path / "f.yaml"), []).task.languages == ("no", "010")


def test_a_text_argument_is_not_cut_at_a_comment() -> None:
    for text in (
        "runs/a #1",
        "# a",
        " a ",
        "a: b",
        "[a",
        "{a}",
        "- a",
        "'a' b",
        "it's",
        '"',
        "a\n b",
        "&a",
        "!x",
    ):
        assert load_config(None, [f"run.dir={text}"]).run.dir == text


def test_text_after_a_list_is_refused() -> None:
    assert "'#5' follows the value; remove it" in refusal("model.hidden=[64] #5")


def test_every_text_key_is_known_as_one() -> None:
    """The default of a key tells its type; a list's first item tells that of the list."""
    for key, field in all_keys():
        first = field.default[:1] if isinstance(field.default, tuple) else (field.default,)
        if first:
            assert (key in text_keys()) == isinstance(first[0], str), key
    assert "model.lora_targets" in text_keys()


# -- equal keys ------------------------------------------------------------------------------------


def test_a_section_given_twice_in_a_file_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("optimizer:\n  lr: 1\nrun: {seed: 1}\noptimizer:\n  momentum: 0.5\n")
    message = refusal(file=file)
    assert f"{file} cannot be read: optimizer is given twice, on lines 1 and 4; keep one" in message
    file.write_text("optimizer:\n  lr: 1\n  momentum: 0.5\n  lr: 2\n")
    assert "optimizer.lr is given twice, on lines 2 and 4; keep one" in refusal(file=file)


def test_a_key_given_twice_within_an_argument_is_refused() -> None:
    message = refusal("run={seed: 1, seed: 2}")
    assert message.endswith("cannot be read: run.seed is given twice; keep one")
    assert "algorithm.sampling.rate is given twice" in refusal(
        "algorithm.sampling={rate: 1, rate: 2}"
    )


def test_a_group_as_an_argument_keeps_the_keys_of_others() -> None:
    for arguments in (["run.seed=3", "run={rounds: 6}"], ["run={rounds: 6}", "run.seed=3"]):
        config = load_config(None, arguments)
        assert (config.run.seed, config.run.rounds) == (3, 6)
    assert load_config(None, ["run.seed=3", "run={seed: 4}"]).run.seed == 4, "the last counts"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("run:\n  seed: 1\noptimizer:\n  lr: 1:30\n", "line 4: optimizer.lr='1:30' is refused"),
        ("\nrun: {seed: 1,\n  sead: 2}\n", "line 3: run.sead is not a known key"),
        ("algorithm:\n  rho: 1\n  name: coob\n", "line 3: algorithm.name='coob' is none of"),
        ("algorithm:\n  rho: x\n", "line 2: algorithm.rho='x' is refused"),
        ("model:\n  hidden:\n  - 1\n  - x\n", "line 2: model.hidden.1='x' is refused"),
        ("# c\nrun: 5\n", "line 2: run=5 must be a group"),
        ("\nalgorithm.rho: 5\n", "line 2: algorithm.rho is written as one key"),
        ("\n\nruns: {seed: 5}\n", "line 3: runs.seed is not a known key"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    assert refusal(file=tmp_path / "f.yaml").startswith(f"--config {tmp_path / 'f.yaml'}, {line}")


def test_a_mistake_in_an_argument_names_no_line(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("run:\n  seed: 1\n")
    assert refusal("run.seed=x", file=tmp_path / "f.yaml").startswith("run.seed='x' is refused")
    assert refusal("run.seed.x=1", file=tmp_path / "f.yaml").startswith(
        "run.seed={'x': 1} is refused"
    )


# -- a text in the place of a section ---------------------------------------------------------------


@pytest.fixture
def short_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a text stand for the section `run`; its key `device` is meant."""
    monkeypatch.setattr(RunConfig, "text_key", "device")


@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize(
    "arguments",
    [
        ["run=a b", "run.seed=3"], ["run.seed=3", "run=a b"],
        ["run.device=c", "run='a b'", "run={seed: 3}"], ["run={device: a b}", "run.seed=3"],
    ],
)  # fmt: skip
def test_a_text_may_stand_for_a_section(tmp_path: Path, arguments: list[str]) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("run: a b\n")
    from_arguments = load_config(None, arguments)
    in_file = load_config(str(file), ["run.seed=3"])
    file.write_text("run: {seed: 3, device: c}\n")
    over_file = load_config(str(file), ["run=a b"])
    nested = config_of({"run": "a b"}, {"run.seed": 3})
    over_nested = config_of({"run": {"device": "c"}}, {"run": "a b", "run.seed": 3})
    path = config_of({"run": Path("a b")}, ["run.seed=3"])
    (swept,) = expand([], read_axes(["run=a b", "run.seed=3"]))
    assert expand([], read_axes(["run={device: a b, seed: 3}"]))[0].config == swept.config
    for config in (from_arguments, in_file, over_file, nested, over_nested, path, swept.config):
        assert (config.run.device, config.run.seed) == ("a b", 3)


@pytest.mark.usefixtures("short_run")
def test_a_text_for_a_section_is_read_as_its_key(tmp_path: Path) -> None:
    for text in ("010", "1:30", "null", "{a", "a: b"):
        if not text.startswith("{"):
            assert load_config(None, [f"run={text}"]).run.device == text
        assert load_config(None, [f"run='{text}'"]).run.device == text
        (tmp_path / "f.yaml").write_text(f"run: '{text}'\n")
        assert load_config(str(tmp_path / "f.yaml"), []).run.device == text
    first, second = read_axes(["run=a,b", "optimizer.lr=1"])
    assert (first.key, first.values, second.key) == ("run.device", ("a", "b"), "optimizer.lr")
    assert "run.device is given twice" in axes_refusal("run=a", "run.device=b")


@pytest.mark.usefixtures("short_run")
def test_a_mistake_in_a_text_for_a_section_names_key_and_line(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text('log: {interval: 1}\nrun: "\\0"\n')
    message = refusal(file=tmp_path / "f.yaml")
    assert message.startswith(
        f"--config {tmp_path / 'f.yaml'}, line 2: run.device='\\x00' is refused"
    )
    assert refusal("run=\0").startswith("run.device='\\x00' is refused")
    (tmp_path / "f.yaml").write_text("run: [a]\n")
    assert "line 1: run=['a'] must be a group of keys" in refusal(file=tmp_path / "f.yaml")
    (tmp_path / "f.yaml").write_text("optimizer: a\n")
    assert "line 1: optimizer='a' must be a group" in refusal(file=tmp_path / "f.yaml")


# -- hostile files ---------------------------------------------------------------------------------


def bomb(levels: int) -> str:
    lines = ["model:", "  hidden: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"  x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(9), "keys and values"),
        (bomb(300), "keys and values"),
        ("run: &a {b: *a}", "contains itself"),
        ("task: {name: language, languages: &a [no, *a]}", "contains itself"),
        ("run: " + "[" * 50_000, "deep"),
        ("run: {seed: !!int 5}", "the tag !!int is not read; remove it"),
        ("run: {<<: {seed: 1}}", "no merge keys"),
        ("a" * (MAX_FILE_BYTES + 1), f"more than {MAX_FILE_BYTES:,} bytes"),
        ("run: {dir: \0}", "special characters"),
    ],
    ids=lambda one: one[:20],
)
def test_a_hostile_file_is_refused_fast(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    began = time.monotonic()
    assert words in refusal("run.rounds=1", file=tmp_path / "f.yaml")
    assert time.monotonic() - began < 20


def test_a_bomb_in_an_argument_is_refused() -> None:
    inner = ", ".join(f"&b{n} [{', '.join([f'*b{n - 1}'] * 10)}]" for n in range(1, 9))
    assert "keys and values" in refusal(
        f"model.hidden=[&b0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1], {inner}]"
    )
    assert "contains itself" in refusal("model.hidden=[&a [*a]]")


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is no regular file" in refusal(file=tmp_path / "pipe")
    assert "/dev/zero is no regular file" in refusal(file="/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert "sparse has more than" in refusal(file=tmp_path / "sparse")
    (tmp_path / "binary").write_bytes(b"\x80\x02}q\x00")
    assert "binary cannot be read: not UTF-8 text" in refusal(file=tmp_path / "binary")
    assert "cannot be read: Is a directory" in refusal(file=tmp_path)
