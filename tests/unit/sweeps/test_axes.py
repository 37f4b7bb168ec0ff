"""Values of a sweep are compared by the type of their key."""

from __future__ import annotations

import pytest

from cobo_dist.errors import ConfigError
from cobo_dist.sweeps.axes import read_axes
from cobo_dist.sweeps.grid import expand


def test_a_sweep_plans_one_run_for_each_value() -> None:
    def seeds(*arguments: str) -> list[int]:
        return [run.seed for run in expand([], read_axes(arguments))]

    assert seeds("seed=8,010") == [8, 10]
    assert seeds("seed=0x10,0o10,09") == [16, 8, 9]
    big = 2**53
    assert seeds(f"seed={big},{big + 1}") == [big, big + 1], "not the same number"
    devices = [run.config.run.device for run in expand([], read_axes(["run.device=0.1,0.10,1e-1"]))]
    assert devices == ["0.1", "0.10", "1e-1"], "text is compared as text"


@pytest.mark.parametrize(
    "argument",
    [
        "seed=10,010", "seed=8,0o10", "seed=16,0x10", "optimizer.lr=1,1.0", "optimizer.lr=010,10",
        "model.hidden=[8],[08]", "run.device=cpu,'cpu'", "algorithm.gamma=9007199254740992,9007199254740993",
        "algorithm.sampling={rate: 1},{rate: 1.0}", "comm.deterministic=true,TRUE",
    ],
)  # fmt: skip
def test_values_that_mean_the_same_are_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"the same.*give every value once"):
        expand([], read_axes([argument]))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["seed=0", "run.seed=1"], "run.seed=0,1"),
        (["seed=0", "seed=0"], "run.seed=0"),
        (["seed=8", "seed=010,08,9"], "run.seed=8,010,9"),
        (["optimizer.lr=0.1", "optimizer.lr=1e-1"], "optimizer.lr=0.1"),
    ],
)
def test_hints_of_a_sweep(arguments: list[str], hint: str) -> None:
    with pytest.raises(ConfigError, match="is given twice; write ") as caught:
        read_axes(arguments)
    assert str(caught.value).endswith(f"; write {hint}")
    read_axes([hint])
