"""Bytes up and down a client: the same on any number of ranks, and what a rank for each client sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from methods import settings_of
from pool import RankPool
from problems import train

from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.comm.client_traffic import ClientTraffic, count_links
from cobo_dist.comm.session import Session
from cobo_dist.maths.weights import Weights

CLIENTS, ROUNDS = 4, 4
D = 64 * 18 + 18 + 18 * 10 + 10  # parameters of a model; halves of a gradient are not equal
SMALL = [
    "task.clusters=2", "task.clients_per_cluster=2", "model.hidden=[18]", f"run.rounds={ROUNDS}",
    "run.eval_every=0", "run.threads=1", "run.checkpoint_every=0",
]  # fmt: skip
CASES = {name: settings_of(name) for name in ALGORITHMS} | {
    "cobo": ["algorithm.gamma=0.5", "algorithm.sampling.name=all"],
    "cobo, sampled": ["algorithm.gamma=0.5", "algorithm.sampling.rate=2"],
    "cobo, simplex": ["algorithm.gamma=0.5", "algorithm.domain=simplex", "run.dtype=float64"],
    "cobo, bfloat16": ["comm.dtype=bfloat16"],
    "fedavg, buffers": ["algorithm.name=fedavg", "algorithm.buffers=averaged", "model.norm=batch"],
}
POINT_TO_POINT = {
    "local",
    "oracle",
    "pens",
    "dpfl",
    "adpsgd",
    "swift",
    *(case for case in CASES if case.startswith("cobo")),
}
"""Those without `all_reduce`, `all_gather` and `visits`, where what goes up once goes to all others."""
MULTIPLIED = {"apple", "similarity_based"}
"""Those with `gram` beside `mix`, where some of what goes up stays on its rank."""

Summaries = dict[int, dict[str, Any]]  # by ranks and case


def train_each(session: Session, cases: dict[str, list[str]], folder: Path) -> None:
    for name, arguments in cases.items():
        assert train(session, [*SMALL, *arguments, f"run.dir={folder / name}"]) == 0


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory, gloo_pool: RankPool) -> Summaries:
    """Every algorithm on 1, 2, 3 and 4 ranks."""
    found: Summaries = {}
    for ranks in (1, 2, 3, 4):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        gloo_pool.run(ranks, train_each, CASES, folder)
        found[ranks] = {
            name: json.loads((folder / name / "summary.json").read_text()) for name in CASES
        }
    return found


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_counts_the_same(summaries: Summaries, case: str) -> None:
    each = [summaries[ranks][case]["bytes_per_client"] for ranks in (1, 2, 3, 4)]
    assert summaries[1][case]["bytes_sent"] == 0
    assert each[0] == each[1] == each[2] == each[3]
    assert (each[0]["up"] > 0, each[0]["down"] > 0) == ((case != "local"),) * 2


@pytest.mark.parametrize("case", CASES)
def test_a_rank_for_each_client_sends_it(summaries: Summaries, case: str) -> None:
    """Pairs and mixing: to the byte. Where ranks send their part of a sum to all others: more than once.

    In `gram` a client's row counts once, and a rank keeps one in R of its columns.
    """
    each, sent = summaries[4][case]["bytes_per_client"], summaries[4][case]["bytes_sent"]
    if case in POINT_TO_POINT:
        assert sent == CLIENTS * each["up"] == CLIENTS * each["down"]
    elif case in MULTIPLIED:
        assert (CLIENTS - 1) * each["up"] < sent < CLIENTS * each["up"]
    else:
        assert sent > (CLIENTS - 1) * each["up"]


def test_counts_by_hand(summaries: Summaries) -> None:
    model = 4 * D

    def of(case: str) -> tuple[float, float]:
        each = summaries[3][case]["bytes_per_client"]
        return each["up"] / ROUNDS, each["down"] / ROUNDS

    assert of("fedavg") == (model, model)
    assert of("oracle") == (model, model)
    assert of("ditto") == (model, model)
    # A model goes up once to be scored and comes down to 3 clients; then it is mixed, W being unlike.
    assert of("validation_based") == (4 * model + 3 * 4, 6 * model + 3 * 4)


def test_a_lone_client_sends_nothing() -> None:
    traffic = ClientTraffic(clients=1, wire_bytes=4)
    traffic.all_reduce(np.ones((2, 1)), np.array([0]), 10)
    traffic.all_gather(1)
    traffic.mix(Weights([0], [0]), 10)
    assert traffic.totals() == (0, 0)


def test_all_reduce_by_hand() -> None:
    """Clients 0, 1 of 3: sum 0 has clients 0 and 2, sum 1 has client 1 only, sum 2 nobody."""
    traffic = ClientTraffic(clients=3, wire_bytes=2)
    weights_kn = np.array([[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]])
    traffic.all_reduce(weights_kn, np.array([0, 1]), 10)
    # Both send their model. Client 0 receives sums 0 and 1, client 1 sum 0: sum 1 is its own model.
    assert traffic.totals() == (2 * 20, 3 * 20)
    # With rows of their own for each sum, client 0 sends one, for sum 0, and client 1 two.
    traffic.all_reduce(np.array([[0.5, 0.1, 0.5], [0, 1, 0]]), np.array([0, 1]), 10, own_rows=True)
    assert traffic.totals() == (2 * 20 + 3 * 20, 3 * 20 + 3 * 20)


@pytest.mark.parametrize("seed", range(20))
def test_links_are_counted_as_in_the_matrix(seed: int) -> None:
    """Rows of W in groups or not, with the weights of clients for themselves left out."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 12))
    ids = np.sort(rng.choice(n, size=int(rng.integers(1, n + 1)), replace=False))
    weights = Weights(ids, rng.integers(0, 3, n), float(rng.choice([0.0, 0.5, 1.0])))
    rows, columns = np.nonzero(rng.random((len(ids), n)) < rng.choice([0.1, 0.9]))
    values = rng.choice([0.0, 0.5, 1.0, 0.3], len(rows)).astype(np.float32)
    weights.put(rows, columns, values)
    off = np.ones((len(ids), n), dtype=bool)
    off[np.arange(len(ids)), ids] = False
    assert count_links(weights) == np.count_nonzero(weights.dense()[off])
