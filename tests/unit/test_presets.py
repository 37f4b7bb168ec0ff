"""Presets: what they set, what wins over them, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.registry import register
from cobo_dist.settings import flatten

WITH_PRESETS = [
    (name, preset)
    for name in register.algorithm
    for preset in register.algorithm[name].target.Config.presets
]


@pytest.mark.parametrize(("algorithm", "preset"), WITH_PRESETS)
def test_every_key_of_a_preset_is_in_the_written_config(algorithm: str, preset: str) -> None:
    config = load_config(None, [f"algorithm.name={algorithm}", f"preset={preset}"])
    written = flatten(yaml.safe_load(config.to_yaml()))
    wanted = flatten(register.algorithm[algorithm].target.Config.presets[preset])
    assert written["preset"] == preset
    assert {key: written[key] for key in wanted} == wanted


def test_the_paper_is_the_default() -> None:
    assert load_config(None, ["preset=paper"]).algorithm == load_config(None, []).algorithm


def test_a_written_config_means_the_same_again(tmp_path: Path) -> None:
    first = load_config(None, ["preset=robust", "algorithm.rho=0.7"])
    path = tmp_path / "config.yaml"
    path.write_text(first.to_yaml())
    assert load_config(str(path), []) == first


def test_a_preset_is_below_the_keys_it_is_named_with(tmp_path: Path) -> None:
    """In a file it is below the file's keys; as an argument it is above them."""
    path = tmp_path / "config.yaml"
    path.write_text("preset: robust\nalgorithm: {rho: 0.3, coupling: explicit}\n")
    algorithm: Any = load_config(str(path), []).algorithm
    assert (algorithm.rho, algorithm.coupling, algorithm.selection) == (
        0.3,
        "explicit",
        "difference",
    )
    algorithm = load_config(str(path), ["preset=evidence", "algorithm.start=ones"]).algorithm
    assert (algorithm.rho, algorithm.coupling, algorithm.start) == (5.0, "capped", "ones")
    algorithm = load_config(str(path), ["preset=paper"]).algorithm
    assert (algorithm.rho, algorithm.coupling, algorithm.selection) == (0.3, "explicit", "gradient")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["preset=robus"], "preset=robus is none of paper, published, evidence, robust"),
        (
            ["preset=robust", "algorithm.name=local"],
            "algorithm.name=local has no presets; drop it or",
        ),
        (["preset={a: 1}"], "preset"),
        (["preset=robust", "algorithm.name=nobody"], "algorithm.name=nobody"),
    ],
)
def test_what_is_no_preset_is_refused(arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(None, arguments)
