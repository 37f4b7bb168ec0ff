"""`--help` fits a screen; `--help TOPIC` describes a section, a name, a group or a key; `--help all` all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cobo_dist.cli import doctor, init, plan, prepare, report, sweep, train
from cobo_dist.config import VARIANTS, Config, all_keys
from cobo_dist.config.help import describe_keys, describe_topic
from cobo_dist.errors import ConfigError

Main = Callable[[Sequence[str]], int]
WITH_KEYS: list[Main] = [doctor.main, plan.main, prepare.main, sweep.main, train.main]
ALL: list[Main] = [*WITH_KEYS, init.main, report.main]
SCREEN_LINES, SCREEN_COLUMNS = 50, 110
RING = Path(__file__).parents[1] / "support" / "plugins" / "ring.py"
_NAMES = [main.__module__.rpartition(".")[2] for main in ALL]


def shown(main: Main, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("main", ALL, ids=_NAMES)
def test_help_fits_a_screen(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """Usage, sections, examples and exit codes. No line stands in another way on another terminal."""
    text = shown(main, capsys, "--help")
    lines = text.splitlines()
    assert len(lines) <= SCREEN_LINES
    assert max(map(len, lines)) <= SCREEN_COLUMNS
    command = main.__module__.rpartition(".")[2]
    assert lines[0].startswith(f"usage: python -m cobo_dist.{command}")
    assert "exit codes: " in text
    assert shown(main, capsys, "-h") == text


@pytest.mark.parametrize("main", WITH_KEYS, ids=_NAMES[: len(WITH_KEYS)])
def test_commands_with_keys_list_the_sections(
    main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(main, capsys, "--help")
    sections = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert set(Config.model_fields) <= set(sections)
    for names in VARIANTS.values():
        for name in names:
            assert name in text
    assert describe_keys() in shown(main, capsys, "--help", "all")
    assert shown(main, capsys, "--help", "run").startswith("run: ")


def test_the_report_lists_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert "weights_all.png" not in shown(report.main, capsys, "--help")
    assert "weights_all.png" in shown(report.main, capsys, "--help", "all")


@pytest.mark.parametrize(
    ("topic", "keys"),
    [
        ("algorithm.sampling", ["name", "rate", "switch_fraction"]),
        ("algorithm.sampling.rate", ["rate"]),
        ("algorithm.sampling.rate=0.5", ["rate"]),
    ],
)
def test_a_group_and_a_key(topic: str, keys: list[str]) -> None:
    title, *lines = describe_topic(topic).splitlines()
    assert title.startswith("algorithm.name=cobo: ")
    assert [line.split()[0] for line in lines[::2]] == [f"algorithm.sampling.{key}" for key in keys]


def test_a_key_of_several_names_is_described_for_each() -> None:
    text = describe_topic("task.validation_fraction")
    assert text.count("task.validation_fraction  (float") > 1
    assert "task.name=digits: " in text
    assert "task.name=cross_silo: " in text


def test_every_section_name_and_key_is_a_topic() -> None:
    whole = describe_keys()
    for section, names in VARIANTS.items():
        titles = describe_topic(section)
        for name in names:
            assert f"{section}.name={name}: " in titles
            assert describe_topic(f"{section}.{name}") in whole
            assert describe_topic(f"{section}.name={name}") == describe_topic(f"{section}.{name}")
    for key, _ in all_keys():
        assert key in describe_topic(key)


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("algoritm", "did you mean algorithm?"),
        ("algorithm.kobo", "did you mean algorithm.cobo?"),
        ("algorithm.roh", "did you mean algorithm.rho?"),
        ("qqqqqqqqq", "give one that --help lists, a key, or all"),
    ],
)
def test_an_unknown_topic_is_refused(
    topic: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"--help {topic}: there is no such section or key; {hint}"
    with pytest.raises(ConfigError) as refusal:
        describe_topic(topic)
    assert str(refusal.value) == line
    assert train.main(["--help", topic]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_other_arguments_may_follow(capsys: pytest.CaptureFixture[str]) -> None:
    """A user adds --help to a command line as it is."""
    text = shown(train.main, capsys, "--help")
    assert shown(train.main, capsys, "run.rounds=3", "--help", "--config", "F.yaml") == text
    assert shown(plan.main, capsys, "--help", "ranks=4") == shown(plan.main, capsys, "--help")
    assert shown(report.main, capsys, "--help", "runs/a") == shown(report.main, capsys, "--help")


def test_help_knows_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that the settings name, and those of a config file."""
    file = tmp_path / "ring.yaml"
    file.write_text(f"plugins: [{RING}]\n")
    for named in ([f"plugins=[{RING}]"], ["--config", str(file)]):
        assert "ring" in shown(train.main, capsys, "--help", *named)
        text = shown(sweep.main, capsys, "--help", "algorithm.ring", *named)
        assert text.startswith(
            "algorithm.name=ring: Gossip over a directed ring.\n  algorithm.gamma "
        )
    assert train.main(["--help", "algorithm.ring"]) == 2
