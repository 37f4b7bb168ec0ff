"""A plan of many ranks: a sampled rank counts as it does in a plan of all ranks, for every algorithm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from methods import settings_of
from test_plan import dry_run_of

import cobo_dist
from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.cli.plan import main
from cobo_dist.planning.dry_run import MAX_COUNTED_RANKS, DryRun, sample_ranks

SMALL = ("model.hidden=[18]", "run.rounds=6", "run.eval_every=0", "model.norm=batch")
WAYS = {
    "": [],
    "deterministic": ["comm.deterministic=true"],
    "bfloat16": ["comm.dtype=bfloat16"],
    "any order": ["task.order=shuffled", "run.seed=3"],
}
MORE = {
    "cobo": [["algorithm.domain=simplex"], ["algorithm.sampling.name=all"]],
    "oracle": [["algorithm.buffers=averaged"]],
    "ifca": [["algorithm.client_share=0.5", "algorithm.centers=3"]],
}
CASES = [
    (name, way, more) for name in ALGORITHMS for way in WAYS for more in ([], *MORE.get(name, []))
]


def sampling(count: int) -> mock._patch[int]:
    """Count at most so many ranks."""
    return mock.patch("cobo_dist.planning.dry_run.MAX_COUNTED_RANKS", count)


@pytest.mark.parametrize(("name", "way", "more"), CASES)
def test_a_sampled_rank_counts_as_among_all(name: str, way: str, more: list[str]) -> None:
    """26 made-up clients on 7 ranks: all ranks, and 3 of them."""
    settings = [*SMALL, *settings_of(name), *WAYS[way], *more]
    whole = dry_run_of(settings, 7, clients=26)
    with sampling(3):
        sample = dry_run_of(settings, 7, clients=26)
    assert (whole.counts_all_ranks, sample.counts_all_ranks) == (True, False)
    assert len(sample.counted) == 3
    for r in (1, 6):
        expected, found = whole.round(r), sample.round(r)
        assert found.pairs == expected.pairs
        assert np.array_equal(found.messages_ps, expected.messages_ps[:, sample.counted])
        assert np.array_equal(found.bytes_ps, expected.bytes_ps[:, sample.counted])
    for rank in sample.counted:
        assert sample.memory_of(rank) == whole.memory_of(rank)
    expected_mixing, found_mixing = whole.other_mixing(), sample.other_mixing()
    for at, mixing in found_mixing.items():
        assert np.array_equal(mixing.bytes_ps, expected_mixing[at].bytes_ps[:, sample.counted])


def test_sums_over_all_ranks_are_estimated_from_the_sample() -> None:
    settings = [*SMALL, "algorithm.sampling.name=all"]
    with sampling(4):
        sample = dry_run_of(settings, 8, clients=80)
    estimated, exact = sample.round(1), dry_run_of(settings, 8, clients=80).round(1)
    assert estimated.total == 2 * estimated.bytes_ps.sum()
    assert estimated.bytes["mixing"] == exact.bytes["mixing"]  # every rank sends as much
    assert estimated.total == pytest.approx(exact.total, rel=0.1)


def test_the_sample_depends_on_seed_and_ranks_alone() -> None:
    assert sample_ranks(0, MAX_COUNTED_RANKS).tolist() == list(range(MAX_COUNTED_RANKS))
    one, same, other = sample_ranks(5, 1000), sample_ranks(5, 1000), sample_ranks(6, 1000)
    assert one.tolist() == same.tolist() == sorted(set(one.tolist()))
    assert len(one) == MAX_COUNTED_RANKS
    assert one.tolist() != other.tolist()
    assert 0 <= one[0] < one[-1] < 1000


def test_made_up_clients_are_in_proportion_to_the_tasks() -> None:
    assert dry_run_of([*SMALL], 2, clients=12).clusters == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert dry_run_of([*SMALL], 2, clients=4).clusters == (0, 1, 2, 3)
    assert dry_run_of([*SMALL], 2).clusters == (0, 0, 1, 1, 2, 2, 3, 3)


def test_few_rounds_are_counted_where_each_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 clients and about 500 pairs a round; all rounds together stand for T."""
    monkeypatch.setattr("cobo_dist.planning.dry_run.MAX_WORK", 5000)
    found = dry_run_of(["run.rounds=1000"], 4, clients=1000).representatives
    assert len(found) == 3
    assert sum(count for _, _, count in found) == 1000
    assert len(dry_run_of(["run.rounds=1000"], 4).representatives) > 50


# -- a million clients ---------------------------------------------------------------------------------

MEASURED = """
import json, sys, time
import torch
from cobo_dist.cli.plan import main
from cobo_dist.training.finish import peak_memory
began = time.process_time()
assert main(sys.argv[1:]) == 0
print(json.dumps([time.process_time() - began, peak_memory(torch.device("cpu"))]))
"""


def measured(*arguments: str) -> tuple[str, float, int]:
    """Plan in a process of its own; return the text, CPU seconds and the peak of its memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True
    )
    *lines, last = done.stdout.splitlines()
    seconds, peak = json.loads(last)
    return "\n".join(lines), seconds, peak


def test_a_million_clients_on_a_thousand_ranks() -> None:
    """At W = 1 a rank sends one model to each other: 999 models of 8,970 numbers of 4 bytes."""
    _, _, least = measured("ranks=2")
    text, seconds, peak = measured("clients=1000000", "ranks=1000")
    assert seconds < 60
    assert peak - least < 500e6, "beside what the program and the data take"
    for words in (
        "1,000,000 in 4 clusters, made up in proportion to the task's 8", "1,000, with 1,000 clients each",
        "32 ranks, drawn from", "sent by all ranks, est.", "sent by one of 32 ranks", "fullest of 32 ranks",
    ):  # fmt: skip
        assert words in text, words
    least_row, most_row = (
        next(line for line in text.splitlines() if line.startswith(f"mean round, {word}")).split()
        for word in ("least", "most")
    )
    assert least_row[-4:-2] == most_row[-4:-2] == [f"{999 * 8970 * 4 / 1e6:.1f}", "MB"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_on_a_thousand_ranks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """3,000 clients; what compares all clients with one another is refused in one line."""
    code = main([*settings_of(name), "ranks=1000", "clients=3000", *SMALL])
    captured = capsys.readouterr()
    if code == 0:
        assert "sent by one of 32 ranks" in captured.out
    else:
        assert f"algorithm.name={name} compares 3,000 clients" in captured.err


# -- planning knows no algorithm -----------------------------------------------------------------------


def test_planning_names_no_algorithm() -> None:
    """Adding an algorithm needs no line here; `local` is a word of other meanings too."""
    package = Path(cobo_dist.__file__).parent
    files = [
        *(package / "planning").glob("*.py"),
        package / "cli/plan.py",
        package / "cli/plan_output.py",
    ]
    assert len(files) > 6
    kinds = [entry.target.__name__ for entry in ALGORITHMS.values()]
    names = {*ALGORITHMS, *kinds, *(f"{kind}Config" for kind in kinds)} - {"local", "Local"}
    pattern = re.compile(rf"\b({'|'.join(names)})\b|algorithms\.(?!algorithm\b|base|registry)")
    for file in files:
        assert not (found := pattern.search(file.read_text())), (file.name, found)


def test_a_dry_run_of_every_algorithm_needs_nothing_else() -> None:
    for name in ALGORITHMS:
        found: DryRun = dry_run_of([*SMALL, *settings_of(name)], 3)
        assert found.traffic()["round 1"].total >= 0
