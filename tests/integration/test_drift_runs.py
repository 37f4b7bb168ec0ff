"""Runs whose clients change cluster: any number of ranks, resumed at the change, and methods that follow."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from methods import DenseClients, check_method, settings_of, trained, write_problem
from pool import RankPool
from problems import rows, train
from resuming import assert_same, stopped

from cobo_dist.maths.graph import adjusted_rand, cluster_match, link_f1
from cobo_dist.maths.weights import Weights

ROUNDS = 12
ETA = 0.1
CLUSTERS = np.arange(7) % 3
EVENTS = (
    "task.drift=[{round: 4, clients: [0], cluster: 1}, {round: 8, clients: [0, 5], cluster: 2}, "
    "{round: 9, clients: [5], cluster: 0}]"
)
MOVES = {3: {0: 1}, 7: {0: 2}, 8: {5: 0}}  # by t
"""The array `clusters` says which is which; client 5 is in cluster 2 from the start, so not moved at 8."""
DRIFT = EVENTS.replace("[0, 5]", "[0]")


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_problem(tmp_path_factory.mktemp("problem"))
    np.savez(path, **np.load(path), clusters=CLUSTERS)
    return path


class Drifting(DenseClients):
    """Example 2 whose clients change cluster as `DRIFT` says."""

    def __init__(self, problem: Path) -> None:
        super().__init__(problem, ETA)
        self.of_cluster, self.cluster = self.centers[:3].copy(), CLUSTERS.copy()

    def begin(self, t: int) -> np.ndarray:
        """Move clients before round t; return the clusters before that."""
        before = self.cluster.copy()
        for client, cluster in MOVES.get(t, {}).items():
            self.cluster[client] = cluster
            self.centers[client] = self.of_cluster[cluster]
        return before

    def step(self) -> np.ndarray:
        """Return all models after a local step, [n, d]."""
        return np.stack([self.local_work(i, self.x[i], 1) for i in range(self.n)])

    def averaged(self, group: np.ndarray) -> np.ndarray:
        """Return the mean of each client's group."""
        return np.stack([self.x[group == one].mean(axis=0) for one in group])


def test_oracle_follows_and_one_that_does_not_is_the_oracle_of_the_start(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    dense = Drifting(problem)
    for t in range(ROUNDS):
        before = dense.begin(t)
        for client in np.flatnonzero(before != dense.cluster):
            dense.x[client] = dense.x[np.flatnonzero(before == dense.cluster[client])[0]]
        dense.x = dense.step()
        dense.x = dense.averaged(dense.cluster)
    same = np.equal.outer(dense.cluster, dense.cluster)
    arguments = ("algorithm.name=oracle", DRIFT, f"run.rounds={ROUNDS}", f"optimizer.lr={ETA}")
    check_method(pool, problem, tmp_path / "follows", (dense.x, same), *arguments)

    blind = Drifting(problem)
    for t in range(ROUNDS):
        blind.begin(t)
        blind.x = blind.step()
        blind.x = blind.averaged(CLUSTERS)
    x, w = trained(pool, problem, tmp_path / "blind", 1, *arguments, "algorithm.follows=false")
    np.testing.assert_allclose(x, blind.x, rtol=0, atol=1e-10)
    assert np.array_equal(w, np.equal.outer(CLUSTERS, CLUSTERS))
    assert np.abs(x - dense.x).max() > 1e-3


def dense_feddrift(problem: Path, delta: float, period: int, start: str) -> tuple[np.ndarray, ...]:
    """FedDrift with all models in one array, as its docstring says. Also returns groups by round."""
    dense = Drifting(problem)
    group = np.arange(dense.n) if start == "own" else np.zeros(dense.n, dtype=int)
    last, history = np.full(dense.n, np.inf), []
    for t in range(ROUNDS):
        dense.begin(t)
        if t and t % period == 0:
            labels = list(np.unique(group))
            loss = np.array(
                [[dense.loss(i, dense.x[group == k][0]) for k in labels] for i in range(dense.n)]
            )
            sets = [[k] for k in range(len(labels))]

            def mean(k: int, j: int) -> float:
                return float(loss[group == labels[k], j].mean())  # noqa: B023

            def apart(one: list[int], other: list[int]) -> float:
                return max(
                    max(mean(i, j) - mean(i, i), mean(j, i) - mean(j, j))
                    for i in one
                    for j in other
                )

            while len(sets) > 1:
                pairs = [
                    (apart(a, b), i, j)
                    for i, a in enumerate(sets)
                    for j, b in enumerate(sets)
                    if i < j
                ]
                least, i, j = min(pairs)
                if least > delta:
                    break
                sets[i] += sets.pop(j)
            for members in sets:
                inside = np.isin(group, [labels[k] for k in members])
                dense.x[inside] = dense.x[inside].mean(axis=0)
                group[inside] = labels[min(members)]
            models, chosen = dense.x.copy(), group.copy()
            for i in range(dense.n):
                own = loss[
                    i,
                    [
                        k
                        for k, label in enumerate(labels)
                        if _joined(label, sets, labels) == group[i]
                    ],
                ]
                best = loss[i].min()
                if best > last[i] + delta:
                    chosen[i], last[i] = 100 + i, np.inf
                    dense.x[i] = dense.start
                    continue
                last[i] = best
                if own.min() > best:
                    label = _joined(labels[int(np.argmin(loss[i]))], sets, labels)
                    chosen[i], dense.x[i] = label, models[group == label][0]
            group = chosen
        dense.x = dense.step()
        dense.x = dense.averaged(group)
        history.append(group.copy())
    return dense.x, np.equal.outer(group, group), np.array(history)


def _joined(label: int, sets: list[list[int]], labels: list[int]) -> int:
    """Return the label of the group that a group became a part of."""
    members = next(one for one in sets if labels.index(label) in one)
    return labels[min(members)]


@pytest.mark.parametrize(
    ("delta", "period", "start"), [(0.05, 2, "own"), (0.3, 3, "one"), (0.1, 4, "own")]
)
def test_feddrift_equals_its_dense_version(
    pool: RankPool, problem: Path, tmp_path: Path, delta: float, period: int, start: str
) -> None:
    x, w, history = dense_feddrift(problem, delta, period, start)
    assert len(np.unique(history, axis=0)) > 1, "groups change"
    check_method(
        pool, problem, tmp_path, (x, w), "algorithm.name=feddrift", f"algorithm.delta={delta}",
        f"algorithm.period={period}", f"algorithm.start={start}", DRIFT, f"run.rounds={ROUNDS}",
        f"optimizer.lr={ETA}",
    )  # fmt: skip


DIGITS = [
    "run.rounds=12", "run.eval_every=2", "run.log_weights_every=3", "task.test_size=60", "model.hidden=[6]",
    "data.batch_size=8", "comm.deterministic=true", "algorithm.gamma=0.3", "log.flush_every=4",
    "task.drift=[{round: 6, clients: [0, 2]}, {round: 7, until: 9, count: 3}]",
]  # fmt: skip


@pytest.mark.parametrize("stop", [5, 6, 8])
def test_stopped_around_the_change_and_resumed_on_other_ranks_it_is_the_same_run(
    pool: RankPool, tmp_path: Path, stop: int
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    pool.run(1, train, [*DIGITS, f"run.dir={whole}"])
    pool.run(2, stopped, [*DIGITS, f"run.dir={part}"], 0, stop, signal.SIGTERM)
    pool.run(3, train, [*DIGITS, f"run.dir={part}", "run.resume=auto"])
    assert_same(part, whole)
    facts = [json.loads((folder / "model.json").read_text()) for folder in (part, whole)]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("name", ["ifca", "oracle", "federated_clustering"])
def test_methods_that_use_clusters_are_the_same_on_any_number_of_ranks(
    pool: RankPool, tmp_path: Path, name: str
) -> None:
    arguments = [one for one in DIGITS if "gamma" not in one] + settings_of(name)
    pool.run(1, train, [*arguments, f"run.dir={tmp_path / 'one'}"])
    pool.run(3, train, [*arguments, f"run.dir={tmp_path / 'three'}"])
    assert_same(tmp_path / "one", tmp_path / "three")


def test_rows_and_summary_compare_with_the_clusters_of_their_round(
    pool: RankPool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pool.run(1, train, [*DIGITS, "run.log_weights_every=1", f"run.dir={folder}"])
    with np.load(folder / "W.npz") as stored:
        weights, rounds = stored["weights"], stored["rounds"].tolist()
        phases = [stored["clusters"], *stored["later_clusters"]]
        switches = stored["switches"].tolist()
    assert switches[0] == 6
    assert switches[-1] <= 9
    last = json.loads((folder / "summary.json").read_text())
    for row in rows(folder, "round"):
        clusters = phases[sum(r <= row["round"] for r in switches)].tolist()
        w = Weights.of_rows(range(8), weights[rounds.index(row["round"])])
        scores = {
            "link_accuracy": cluster_match,
            "link_f1": link_f1,
            "adjusted_rand": adjusted_rand,
        }
        found = {key: score(w, clusters) for key, score in scores.items()}
        assert {key: row[key] for key in found} == pytest.approx(found)
    assert {key: last[key] for key in found} == pytest.approx(found)
    assert last["link_accuracy"] != pytest.approx(cluster_match(w, phases[0].tolist()))


def test_a_saved_model_knows_the_labels_that_its_client_had_last(
    pool: RankPool, tmp_path: Path
) -> None:
    import cobo_dist

    given = [*DIGITS[:-1], "task.drift=[{round: 6, clients: [0], cluster: 1}]"]
    pool.run(1, train, [*given, f"run.dir={tmp_path / 'moved'}"])
    pool.run(1, train, [*DIGITS[:-1], f"run.dir={tmp_path / 'plain'}"])
    moved, plain = (cobo_dist.open_run(tmp_path / name) for name in ("moved", "plain"))
    assert moved.model(0).labels.tolist() == plain.model(2).labels.tolist()
    assert moved.model(1).labels.tolist() == plain.model(0).labels.tolist()
