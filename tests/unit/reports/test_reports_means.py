"""The metric as other benchmarks report it: best over rounds, and with clients counted by their examples."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from problems import QUIET, rows

from cobo_dist.cli.train import main
from cobo_dist.reports.metrics import best_value, mean_over_clients, mean_over_examples
from cobo_dist.reports.reading import read_run


@pytest.mark.parametrize("part", [0, 5])
def test_best_rounds_and_means_over_examples(part: int, tmp_path: Path) -> None:
    """Clients of unequal size; an evaluation on a part of the data is never the best."""
    given = [
        "task.name=classification", "task.partition.name=quantity", "task.partition.clients=4",
        "algorithm.name=local", "run.rounds=12", "run.eval_every=1", "optimizer.lr=0.7", "model.hidden=[8]",
        f"data.eval_examples={part}", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main([*QUIET, *given]) == 0
    values, sizes = defaultdict(dict), {}
    for one in rows(tmp_path / "run", "eval"):
        if one["client"] is not None and one["whole"]:
            values[one["round"]][one["client"]] = one["accuracy"]
            sizes[one["client"]] = one["examples"]
    assert len(set(sizes.values())) > 1
    assert sorted(values) == ([12] if part else list(range(13)))
    plain = {r: sum(by.values()) / 4 for r, by in values.items()}
    weighted = {
        r: sum(sizes[i] * a for i, a in by.items()) / sum(sizes.values())
        for r, by in values.items()
    }
    run = read_run(tmp_path / "run")
    by_clients, by_examples = (
        mean(run, "test", "accuracy") for mean in (mean_over_clients, mean_over_examples)
    )
    assert by_examples[12] == pytest.approx(weighted[12])
    for series, expected in ((by_clients, plain), (by_examples, weighted)):
        best = best_value(run, "test", "accuracy", series)
        assert best == pytest.approx(max(expected.values()))
    losses = mean_over_clients(run, "test", "loss")
    least = min(losses[r] for r in values)
    assert best_value(run, "test", "loss", losses) == pytest.approx(least)
    assert abs(weighted[12] - plain[12]) > 1e-3
