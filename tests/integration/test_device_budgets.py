"""How often the host waits for a GPU in a round, and how many kernels it launches: counted, with a bound.

The counts are those of one rank on the virtual CUDA. They depend on the number of clients and layers, and not
on the size of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from device_counts import counts_of_run
from virtual_cuda import Counts

SHORT = ("run.rounds=2", "run.eval_every=0", "run.log_weights_every=0", "run.engine=vectorised")


def counts_of_round(folder: Path, arguments: Sequence[str]) -> Counts:
    """Return the counts of the second round: the first also prepares what later rounds use again."""
    rounds, _ = counts_of_run([*SHORT, *arguments, f"run.dir={folder / 'run'}"])
    return rounds[1]


def digits(algorithm: str, *more: str) -> list[str]:
    return [f"algorithm.name={algorithm}", "task.validation_fraction=0.2", *more]


@pytest.mark.parametrize(
    ("arguments", "syncs", "kernels"),
    [
        (digits("ifca"), 1, 220),
        (digits("ifca", "model.norm=batch"), 1, 400),
        (digits("ifca", "algorithm.client_share=0.5"), 1, 170),
        (digits("ifca", "run.engine=one_by_one"), 1, 600),
        (digits("validation_based"), 1, 320),
        (digits("validation_based", "run.engine=one_by_one"), 1, 900),
        (digits("validation_based", "model.norm=batch", "algorithm.buffers=averaged"), 1, 590),
        (digits("federated_clustering"), 3, 300),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_a_round_of_eight_digits_clients(
    tmp_path: Path, arguments: list[str], syncs: int, kernels: int
) -> None:
    counts = counts_of_round(tmp_path, arguments)
    assert counts.syncs.total() <= syncs, counts.describe()
    assert counts.kernels.total() <= kernels, counts.describe()


def test_more_clients_and_centers_do_not_wait_more(tmp_path: Path) -> None:
    many = [
        "task.clusters=10",
        "task.clients_per_cluster=8",
        "model.hidden=[8]",
        "data.batch_size=2",
    ]
    counts = counts_of_round(tmp_path, digits("ifca", *many))
    assert counts.syncs.total() <= 1, counts.describe()
    assert counts.kernels.total() <= 400, counts.describe()
