"""The section clock and its trace: what it gives, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.scenario.clock import ClockConfig
from cobo_dist.training.preparation import scenario_text

N = 4


def clock(*keys: str) -> ClockConfig:
    return load_config(None, ["clock.name=virtual", *(f"clock.{key}" for key in keys)]).clock


def refusal(*keys: str) -> str:
    """Return the one line with which a clock is refused, by the config or for four clients."""
    with pytest.raises(ConfigError) as caught:
        clock(*keys).times(0, N)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def test_speeds_are_drawn_once_for_each_client() -> None:
    work_n = clock("seconds=2", "spread=0.5").times(3, 2000).work_n
    assert np.array_equal(work_n[:N], clock("seconds=2", "spread=0.5").times(3, N).work_n)
    assert not np.array_equal(work_n[:N], clock("seconds=2", "spread=0.5").times(4, N).work_n)
    assert np.log(work_n / 2).std() == pytest.approx(0.5, rel=0.05)
    assert np.log(work_n / 2).mean() == pytest.approx(0.0, abs=0.05)


def test_some_clients_are_slow() -> None:
    times = clock("slow_clients=[1,3]", "slow_factor=4", "latency=0.5", "bandwidth=2").times(0, N)
    assert times.work_n.tolist() == [1.0, 4.0, 1.0, 4.0]
    assert times.message_seconds(3_000_000).tolist() == [2.0] * N
    assert clock().times(0, N).message_seconds(10**9).tolist() == [0.0] * N


def test_a_trace_gives_each_client_its_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "client, seconds, megabytes_a_second, latency\n2,3,1,0\n0,1,2,0.1\n\n1,2,4,0.2\n3,4.5,8,0\n"
    )
    times = clock(f"trace={path}", "slow_clients=3", "slow_factor=2").times(0, N)
    assert times.work_n.tolist() == [1.0, 2.0, 3.0, 9.0]
    assert times.message_seconds(4_000_000) == pytest.approx([2.1, 1.2, 4.0, 0.5])


HEAD = "client,seconds\n"
WRONG_TRACES = {
    "a hole": (HEAD + "0,1\n1,1\n3,1\n", "has no line for client 2 and lacks 1 of 4 clients"),
    "unknown": (HEAD + "0,1\n4,1\n", "line 3: client 4 is unknown; the 4 clients are 0 to 3"),
    "huge": (HEAD + "0,1\n" + "9" * 5000 + ",1\n", "is unknown"),
    "no id": (HEAD + "-1,1\n", "line 2: client -1 is unknown"),
    "twice": (HEAD + "0,1\n0,2\n", "line 3: client 0 has a line already"),
    "negative": (HEAD + "0,1\n1,-2\n", "line 3: seconds is -2; it must be a number above 0"),
    "zero": (HEAD + "0,0\n", "line 2: seconds is 0"),
    "nan": (HEAD + "0,nan\n", "line 2: seconds is nan"),
    "infinite": (HEAD + "0,inf\n", "line 2: seconds is inf"),
    "empty": (HEAD + "0,\n", "line 2: seconds is (empty)"),
    "words": (HEAD + "0,fast\n", "line 2: seconds is fast"),
    "short": (HEAD + "0\n", "line 2: it has 1 values for 2 columns"),
    "latency": (
        "client,seconds,latency\n0,1,-1\n",
        "line 2: latency is -1; it must be a number 0 or more",
    ),
    "rate": ("client,seconds,megabytes_a_second\n0,1,0\n", "line 2: megabytes_a_second is 0"),
    "columns": ("client,time\n0,1\n", "line 1: the columns are client, time"),
    "nothing": ("", "line 1: the columns are missing"),
    "header only": (HEAD, "has no line for client 0 and lacks 4 of 4 clients"),
}


@pytest.mark.parametrize("case", WRONG_TRACES)
def test_a_wrong_trace_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    text, words = WRONG_TRACES[case]
    path = tmp_path / "trace.csv"
    path.write_text(text)
    message = refusal(f"trace={path}")
    assert words in message
    assert str(path) in message


def test_a_trace_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(f"trace={tmp_path / 'none.csv'}")
    (tmp_path / "bytes.csv").write_bytes(b"client,seconds\n0,\xff\n")
    assert "cannot be read" in refusal(f"trace={tmp_path / 'bytes.csv'}")


WRONG_KEYS = {
    "slow_clients=[1,9] slow_factor=2": "names client 9, and the 4 clients are 0 to 3",
    "slow_clients=-1 slow_factor=2": "clock.slow_clients",
    "slow_clients=1": "clock.slow_clients=[1] has no effect without clock.slow_factor",
    "slow_factor=2": "clock.slow_factor=2 has no effect without clock.slow_clients",
    "seconds=0": "greater than 0",
    "seconds=.nan": "clock.seconds",
    "latency=-1": "greater than or equal to 0",
    "latency=20": "write 0.02 for 20 ms",
    "tick=0.5": "no effect with clock.policy=sync",
    "discount=sqrt": "no effect with clock.policy=sync",
    "policy=free staleness=2": "set clock.policy=bounded",
    "policy=free tick=1.5": "lower clock.tick to 1 or less",
    "trace=a.csv seconds=2": "drop one of them",
    "policy=late": "none of sync, bounded, free",
}


@pytest.mark.parametrize("keys", WRONG_KEYS)
def test_keys_that_do_not_go_together_are_refused(keys: str) -> None:
    assert WRONG_KEYS[keys] in refusal(*keys.split())


def test_latency_and_bandwidth_are_said_once(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = "".join(f"{i},1,0.1,5\n" for i in range(N))
    path.write_text("client,seconds,latency,megabytes_a_second\n" + lines)
    for key in ("latency", "bandwidth"):
        assert f"clock.{key}=1 and a column of" in refusal(f"trace={path}", f"{key}=1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clock.policy=free"], "clock.policy=free has no effect with clock.name=rounds"),
        (["clock.seconds=2"], "set clock.name=virtual"),
        (
            ["clock.name=virtual", "clock.policy=free", "participation.count=2"],
            "participation.count says it otherwise; drop participation.count",
        ),
        (
            ["clock.name=virtual", "clock.policy=free", "algorithm.name=ifca", "algorithm.client_share=0.5"],
            "set clock.policy=sync",
        ),
    ],
)  # fmt: skip
def test_sections_that_do_not_go_with_the_clock_are_refused(
    arguments: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        load_config(None, arguments)


def test_a_trace_that_has_changed_is_noticed(tmp_path: Path) -> None:
    """Ranks that read other times, and a run that is resumed with other times, are refused as other data."""
    path = tmp_path / "trace.csv"
    config = load_config(None, ["clock=virtual", f"clock.trace={path}"])
    found = []
    for last in ("1", "1.0", "2"):
        path.write_text(HEAD + "".join(f"{i},1\n" for i in range(1999)) + f"1999,{last}\n")
        found.append(scenario_text(config, 2000))
    assert found[0] == found[1] != found[2]
    assert scenario_text(load_config(None, ["clock=virtual"]), 2000) == ""
