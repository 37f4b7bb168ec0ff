"""Methods that learn a graph or groups of clients, against dense twins and at their extremes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from methods import DenseClients, check_method, trained, write_problem
from pool import RankPool
from problems import QUIET, rows, train
from resuming import assert_same, stopped
from scipy.linalg import subspace_angles
from scipy.optimize import minimize

from cobo_dist.algorithms.pfedgraph import graph_rows
from cobo_dist.cli.train import main
from cobo_dist.comm.mixing_exchange import MixingExchange
from cobo_dist.comm.session import Session
from cobo_dist.config import load_config
from cobo_dist.maths import seeds
from cobo_dist.maths.distances import linked_groups, squared_distances
from cobo_dist.maths.weights import Weights

ROUNDS, ETA = 6, 0.1
SHORT = (f"run.rounds={ROUNDS}", f"optimizer.lr={ETA}")
Result = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def unlike(problem: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with clients of a cluster that differ a little, and with unequally many examples."""
    arrays = dict(np.load(problem))
    noise = np.random.default_rng(3).normal(scale=0.2, size=arrays["centers"].shape)
    path = tmp_path_factory.mktemp("unlike") / "problem.npz"
    np.savez(path, **arrays | {"centers": arrays["centers"] + noise}, examples=np.arange(1, 8))
    return path


def taking_part(t: int, n: int, count: int = 0) -> list[int]:
    """Return the clients of round t: all, or as many as are drawn."""
    if not count:
        return list(range(n))
    return sorted(seeds.permutation(seeds.key(0, "clients", t), n).tolist()[:count])


def cosines_of(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1)
    norms[norms == 0] = np.inf
    return rows @ rows.T / np.outer(norms, norms)


# -- FedAMP and HeurFedAMP -----------------------------------------------------------------------------


def fedamp_rows(x: np.ndarray, n: int, sigma: float = 0.0, alpha: float = 0.0) -> np.ndarray:
    """Attention among all rows of x, some of n clients."""
    m = len(x)
    s = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    sigma = sigma or float(np.median(s[np.triu_indices(m, 1)]))
    alpha = alpha or sigma / (2 * (n - 1))
    xi = np.exp(-s / sigma) * alpha / sigma if sigma else np.full((m, m), 0.5 / (n - 1))
    np.fill_diagonal(xi, 0)
    return xi + np.diag(1 - xi.sum(axis=1))


def heurfedamp_rows(rows: np.ndarray, sigma: float = 10.0, own: float = 0.3) -> np.ndarray:
    parts = np.exp(sigma * cosines_of(rows))
    np.fill_diagonal(parts, 0)
    return np.diag(np.full(len(rows), own)) + (1 - own) * parts / parts.sum(axis=1, keepdims=True)


AMP = {
    "fedamp": [],
    "fedamp sigma=3 alpha=0.2 lambda=0.1": [],
    "fedamp lambda=2": ["local.steps=3"],
    "fedamp sigma=5": ["participation.count=4", "local.steps=2"],
    "heurfedamp": ["local.steps=2"],
    "heurfedamp compare=updates self_weight=0.5 sigma=4": ["participation.count=3"],
}


@pytest.mark.parametrize("case", AMP)
def test_message_passing_is_its_dense_twin(
    case: str, pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    name, *keys = case.split()
    given = dict(key.split("=") for key in keys)
    local = dict(key.split("=") for key in AMP[case])
    numbers = {key: float(given[key]) for key in ("sigma", "alpha") if key in given}
    dense = DenseClients(problem, ETA)
    pull = float(given.get("lambda", 1)) / numbers.get("alpha", 1.0)
    w = np.eye(dense.n)
    for t in range(ROUNDS):
        part = taking_part(t, dense.n, int(local.get("participation.count", 0)))
        compared = dense.x[part] - (dense.start if "compare" in given else 0)
        xi = (
            fedamp_rows(compared, dense.n, **numbers)
            if name == "fedamp"
            else heurfedamp_rows(
                compared, numbers.get("sigma", 10), float(given.get("self_weight", 0.3))
            )
        )
        w[part] = 0
        w[np.ix_(part, part)] = xi
        moved = dense.x.copy()
        for i, u in zip(part, xi @ dense.x[part], strict=True):
            steps = int(local.get("local.steps", 1))
            moved[i] = dense.local_work(i, dense.x[i], steps, lambda y, u=u: pull * (y - u))
        dense.x = moved
    arguments = [f"algorithm.name={name}", *(f"algorithm.{key}" for key in keys), *AMP[case]]
    check_method(pool, problem, tmp_path, (dense.x, w), *SHORT, *arguments)


@pytest.mark.parametrize(
    ("keys", "own"), [((), 0.5), (("algorithm.sigma=2", "algorithm.alpha=0.1"), 1 - 6 * 0.1 / 2)]
)
def test_equal_starts_have_the_papers_self_weight(
    keys: tuple[str, ...], own: float, pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """xi_ii = 1 - (n - 1) alpha/sigma, and alpha/sigma for each other client."""
    _, w = trained(
        pool, problem, tmp_path / "run", 2, "algorithm.name=fedamp", "run.rounds=1", *keys
    )
    np.testing.assert_allclose(
        w, np.full((7, 7), (1 - own) / 6) * (1 - np.eye(7)) + own * np.eye(7)
    )


@pytest.mark.parametrize(
    "keys",
    [
        ["fedamp", "algorithm.lambda=0", "local.steps=2"],
        ["fedamp", "algorithm.sigma=1e-9"],  # one step, and nobody near
        ["heurfedamp", "algorithm.self_weight=1"],
        ["dada", "algorithm.mu1=0", "local.steps=2"],
        ["dada", "algorithm.mu2=1e-6"],  # links cost more than they are worth
        ["flhc", "algorithm.clusters=7", "algorithm.after_rounds=1"],
    ],
)  # fmt: skip
def test_extremes_that_are_local(
    keys: list[str], pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    name, *more = keys
    found, _ = trained(pool, problem, tmp_path / "run", 2, *SHORT, f"algorithm.name={name}", *more)
    steps = ROUNDS * (2 if "local.steps=2" in keys else 1)
    dense = DenseClients(problem, ETA)
    alone = [dense.local_work(i, dense.start, steps) for i in range(dense.n)]
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-10)


# -- pFedGraph -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.8, 20.0])
def test_the_graph_is_what_a_solver_finds(alpha: float) -> None:
    rng = np.random.default_rng(1)
    cosines, p = cosines_of(rng.normal(size=(6, 4))), rng.dirichlet(np.ones(6))
    part = np.array([True, True, False, True, True, True])
    p = np.where(part, p, 0) / p[part].sum()
    found = graph_rows(cosines, p, alpha, part)
    for i in range(6):
        solved = minimize(
            lambda w, i=i: -w @ cosines[i] + alpha * np.sum((w - p) ** 2),
            p, method="SLSQP", bounds=[(0, 1 if one else 0) for one in part], tol=1e-14,
            jac=lambda w, i=i: -cosines[i] + 2 * alpha * (w - p),
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        )  # fmt: skip
        np.testing.assert_allclose(found[i], solved.x, rtol=0, atol=1e-6)


def pfedgraph(
    problem: Path,
    steps: int,
    count: int,
    *,
    alpha: float,
    lam: float,
    above: float,
    shares: np.ndarray,
) -> Result:
    """x^0 plays no part in round 1; a solver of its own finds the graph, by bisection of the multiplier."""
    dense = DenseClients(problem, ETA)
    w = (1 - np.eye(dense.n)) / (dense.n - 1)
    for t in range(ROUNDS):
        part = taking_part(t, dense.n, count)
        x = dense.x[part]
        near = cosines_of(x - dense.start)
        near[near > above] = 1
        p = shares[part] / shares[part].sum()
        target = p + near / (2 * alpha)
        low, high = target.min(axis=1) - 1, target.max(axis=1)
        for _ in range(200):
            middle = (low + high) / 2
            too_much = np.maximum(target - middle[:, None], 0).sum(axis=1) > 1
            low, high = np.where(too_much, middle, low), np.where(too_much, high, middle)
        rows = np.maximum(target - low[:, None], 0)
        moved, towards = x, np.zeros_like(x)
        if t:
            w[part] = 0
            w[np.ix_(part, part)] = rows
            moved = rows @ x
            towards = rows @ (x / np.linalg.norm(x, axis=1, keepdims=True))
        new = dense.x.copy()
        for k, i in enumerate(part):

            def turn(y: np.ndarray, v: np.ndarray = towards[k]) -> np.ndarray:
                norm = np.linalg.norm(y)
                return -lam * (v / norm - (v @ y) * y / norm**3)

            new[i] = dense.local_work(i, moved[k], steps, turn)
        dense.x = new
    return dense.x, w


PFEDGRAPH = {
    "default": ([], {}),
    "authors": (["algorithm.penalty=repulsion", "algorithm.lambda=0.3", "algorithm.same_above=0.9"],
                {"lam": -0.3, "above": 0.9}),
    "local steps": (["local.steps=3", "algorithm.lambda=0.5", "algorithm.alpha=3"],
                    {"steps": 3, "lam": 0.5, "alpha": 3.0}),
    "some clients": (["participation.count=4", "local.steps=2"], {"count": 4, "steps": 2}),
    "by examples": (["algorithm.weighting=examples", "algorithm.alpha=5", "algorithm.lambda=0"],
                    {"shares": np.arange(1.0, 8.0), "alpha": 5.0, "lam": 0.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", PFEDGRAPH)
def test_pfedgraph_is_its_dense_twin(
    case: str, pool: RankPool, unlike: Path, tmp_path: Path
) -> None:
    keys, given = PFEDGRAPH[case]
    default = {
        "steps": 1, "count": 0, "alpha": 0.8, "lam": 0.01, "above": 1.0, "shares": np.ones(7)
    }  # fmt: skip
    expected = pfedgraph(unlike, **(default | given))
    check_method(pool, unlike, tmp_path, expected, *SHORT, "algorithm.name=pfedgraph", *keys)


def test_pfedgraph_near_equal_shares_is_fedavg(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """Its last local work comes after the last average."""
    keys = ["algorithm.alpha=1e12", "algorithm.lambda=0"]
    found, w = trained(pool, problem, tmp_path / "a", 2, *SHORT, "algorithm.name=pfedgraph", *keys)
    expected, _ = trained(pool, problem, tmp_path / "b", 2, *SHORT, "algorithm.name=fedavg")
    np.testing.assert_allclose(found.mean(axis=0), expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(w, np.full((7, 7), 1 / 7), atol=1e-9)


# -- groups: CFL and one-shot clustering ---------------------------------------------------------------


def merged(
    distances: np.ndarray, linkage: str, count: int = 0, most: float = 0.0
) -> list[list[int]]:
    """Agglomerative clustering, written out."""
    of_pairs = {"complete": np.max, "average": np.mean, "single": np.min}[linkage]
    groups = [[i] for i in range(len(distances))]
    while len(groups) > max(count, 1):
        gaps = {
            (a, b): of_pairs(distances[np.ix_(groups[a], groups[b])])
            for a in range(len(groups))
            for b in range(a + 1, len(groups))
        }
        a, b = min(gaps, key=lambda pair: gaps[pair])
        if not count and gaps[a, b] > most:
            break
        groups[a] = sorted(groups[a] + groups.pop(b))
    return sorted(groups)


@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
def test_linked_groups_are_merged_as_written_out(linkage: str) -> None:
    points = np.random.default_rng(0).normal(size=(9, 3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    for given in ({"count": 3}, {"threshold": 1.5}, {"count": 9}, {"count": 1}):
        expected = merged(distances, linkage, given.get("count", 0), given.get("threshold", 0.0))
        found = linked_groups(distances, linkage, **given)
        assert [np.flatnonzero(found == k).tolist() for k in range(found.max() + 1)] == expected
    assert linked_groups(np.ones((4, 4)), "complete", count=2).max() == 1, (
        "also where all are as near"
    )


def test_equal_rows_have_distance_0() -> None:
    rows = np.tile(np.random.default_rng(0).normal(size=1000) * 1e3, (3, 1))
    rows[2, 0] += 1.0
    products = np.array([[sum(a * b) for b in rows] for a in rows])  # one after the other
    products[0, 1] *= 1 + 1e-14
    found = squared_distances(products, products.diagonal(), range(3))
    assert found[0, 1] == found[0, 0] == 0.0
    assert found[0, 2] == pytest.approx(1.0, rel=1e-4)


class GroupTwin(DenseClients):
    """FedAvg within groups, with the last updates of all clients."""

    def __init__(
        self, problem: Path, eta: float, steps: int = 1, count: int = 0, by: str = "equal"
    ):
        super().__init__(problem, eta)
        self.steps, self.count = steps, count
        self.groups = [list(range(self.n))]
        self.sizes = np.arange(1.0, self.n + 1) if by == "examples" else np.ones(self.n)
        self.updates: dict[int, np.ndarray] = {}
        self.halved_every = 0  # rounds, of the step size

    def work(self, t: int) -> list[int]:
        part = taking_part(t, self.n, self.count)
        if self.halved_every and t and t % self.halved_every == 0:
            self.eta /= 2
        for i in part:
            self.updates[i] = self.local_work(i, self.x[i], self.steps) - self.x[i]
        return part

    def average(self, part: list[int]) -> None:
        for group in self.groups:
            of = [i for i in group if i in part]
            if of:
                shares = self.sizes[of] / self.sizes[of].sum()
                self.x[group] = shares @ np.stack([self.x[i] + self.updates[i] for i in of])

    def result(self) -> Result:
        label = [
            next(k for k, group in enumerate(self.groups) if i in group) for i in range(self.n)
        ]
        return self.x, np.equal.outer(label, label)


def twin(problem: Path, eta: float, work: dict[str, Any]) -> GroupTwin:
    """Return the twin of a run with `arguments_of(work)`."""
    given = dict(work)
    halved_every = given.pop("halved_every", 0)
    found = GroupTwin(problem, eta, **given)
    found.halved_every = halved_every
    return found


def arguments_of(work: dict[str, Any]) -> list[str]:
    """Return what tells a run the settings of `GroupTwin`, but for `by`."""
    given = [f"local.steps={work.get('steps', 1)}"]
    if "count" in work:
        given.append(f"participation.count={work['count']}")
    if "halved_every" in work:
        given += ["optimizer.schedule=step", "optimizer.step_factor=0.5"]
        given.append(f"optimizer.step_every={work['halved_every']}")
    return given


def cfl(twin: GroupTwin, rounds: int, eps1: float, eps2: float, first: int, gamma: float | None,
        relative: bool, linkage: str) -> Result:  # fmt: skip
    early = []
    for t in range(rounds):
        part = twin.work(t)
        before = twin.x.copy()
        twin.average(part)
        norms = {i: np.linalg.norm(twin.updates[i]) for i in part}
        if t < first:
            early += [norm / twin.eta for norm in norms.values()]
            continue
        unit = twin.eta * np.mean(early) if relative else 1.0
        groups = []
        for group in twin.groups:
            of = [norms[i] for i in group if i in part]
            known = len(group) >= 3 and all(i in twin.updates for i in group)
            mean = np.linalg.norm(twin.x[group[0]] - before[group[0]])
            if not (known and of and mean < eps1 * unit and max(of) > eps2 * unit):
                groups.append(group)
                continue
            near = cosines_of(np.stack([twin.updates[i] for i in group]))
            a, b = merged(1 - near, linkage, 2)
            if gamma is not None and near[np.ix_(a, b)].max() >= np.sqrt((1 - gamma) / 2):
                groups.append(group)
            else:
                groups += [[group[k] for k in side] for side in (a, b)]
        twin.groups = groups
    return twin.result()


CFL = {
    "relative": ([], {}, {}),
    "absolute": (["norms=absolute", "eps1=0.1", "eps2=0.12"],
                 {"eps1": 0.1, "eps2": 0.12, "relative": False}, {}),
    "local steps, by examples": (["weighting=examples"], {}, {"steps": 3, "by": "examples"}),
    "some clients": (["eps1=1.5", "eps2=0.1"], {"eps1": 1.5, "eps2": 0.1}, {"steps": 2, "count": 5}),
    "gamma": (["gamma=0.9"], {"gamma": 0.9}, {}),
    "single": (["linkage=single"], {"linkage": "single"}, {}),
    "smaller steps": ([], {}, {"halved_every": 3}),
    "smaller steps, some clients": (["eps1=1.5", "eps2=0.1"], {"eps1": 1.5, "eps2": 0.1},
                                    {"count": 5, "halved_every": 3}),
}  # fmt: skip


@pytest.mark.parametrize("case", CFL)
def test_cfl_is_its_dense_twin(case: str, pool: RankPool, unlike: Path, tmp_path: Path) -> None:
    keys, given, work = CFL[case]
    default = {"rounds": 16, "eps1": 0.4, "eps2": 0.3, "first": 4, "gamma": None, "relative": True,
               "linkage": "complete"}  # fmt: skip
    expected = cfl(twin(unlike, 0.25, work), **(default | given))
    assert 0 < expected[1].sum() < 49, "a cluster was cut"
    check_method(
        pool, unlike, tmp_path, expected, "run.rounds=16", "optimizer.lr=0.25",
        "algorithm.name=cfl", "algorithm.first_split=4", "algorithm.eps2=0.3",
        *(f"algorithm.{key}" for key in keys), *arguments_of(work),
    )  # fmt: skip


def fan(folder: Path) -> Path:
    """Write 4 clients whose updates point at 0, 30, 63 and 99 degrees."""
    angles = np.radians([0.0, 30.0, 63.0, 99.0])
    path = folder / "fan.npz"
    centers = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.savez(path, centers=centers, curvature=np.ones(4), start=np.zeros(2))
    return path


@pytest.mark.parametrize(("linkage", "cut"), [("complete", 2), ("single", 3)])
def test_single_linkage_makes_the_largest_cosine_across_least(
    linkage: str, cut: int, pool: RankPool, tmp_path: Path
) -> None:
    """Cos 33 degrees is 0.839, and cos 36 degrees, the least that any cut has, 0.809."""
    _, w = trained(
        pool, fan(tmp_path), tmp_path / "run", 2, "algorithm.name=cfl", f"algorithm.linkage={linkage}",
        "algorithm.first_split=1", "algorithm.eps1=10", "algorithm.eps2=0", "run.rounds=2",
    )  # fmt: skip
    side = np.arange(4) < cut
    np.testing.assert_array_equal(w, np.equal.outer(side, side))


def test_relative_norms_do_not_see_the_step_size(pool: RankPool, tmp_path: Path) -> None:
    """The step size has fallen to 1/32 by the round of the first cut."""
    less = ["optimizer.schedule=step", "optimizer.step_every=1", "optimizer.step_factor=0.5"]
    _, w = trained(
        pool, four_clusters(tmp_path), tmp_path / "run", 2, "run.rounds=8", "optimizer.lr=0.9", *less,
        "algorithm.name=cfl", "algorithm.first_split=5", "algorithm.eps1=0.4", "algorithm.eps2=0.6",
    )  # fmt: skip
    assert not w.all()


OPPOSITE, LINES = (10.0, 60.0, 190.0, 250.0), (10.0, 60.0, 100.0, 150.0)
"""Directions of four clusters; the first and third of OPPOSITE lie on one line."""


def four_clusters(folder: Path, directions: tuple[float, ...] = OPPOSITE) -> Path:
    """Write 4 x 3 clients in the plane; clients i, i + 4, i + 8 are alike."""
    angles = np.radians(directions)[np.arange(12) % 4]
    centers = 3.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    centers += np.random.default_rng(0).normal(scale=0.02, size=centers.shape)
    path = folder / "four.npz"
    np.savez(path, centers=centers, curvature=np.ones(12), start=np.array([1.0, -2.0]),
             clusters=np.arange(12) % 4)  # fmt: skip
    return path


FOUR = ("run.rounds=50", "optimizer.lr=0.3")


def test_cfl_finds_four_clusters_and_keeps_all_twelve_clients(
    pool: RankPool, tmp_path: Path
) -> None:
    """Public copies take positions within a cluster for clients from the second cut on, and lose some."""
    path = four_clusters(tmp_path)
    x, w = trained(pool, path, tmp_path / "run", 3, *FOUR, "algorithm.name=cfl",
                   "algorithm.first_split=5", "algorithm.eps1=0.1", "algorithm.eps2=0.2")  # fmt: skip
    same = np.equal.outer(np.arange(12) % 4, np.arange(12) % 4)
    np.testing.assert_array_equal(w, same)
    means = same @ np.load(path)["centers"] / 3
    np.testing.assert_allclose(x, means, atol=1e-3)


@pytest.mark.parametrize("name", ["cfl", "flhc"])
def test_groups_survive_a_restart(name: str, pool: RankPool, tmp_path: Path) -> None:
    """Stopped after clusters were cut, and gone on with on another number of ranks."""
    run = [
        "task.name=quadratic", f"task.file={four_clusters(tmp_path)}", *FOUR, f"algorithm.name={name}",
        "comm.deterministic=true", "participation.count=10",
        "log.flush_every=5",  # ranks learn of signals then, and a fast run ends before the default
        *(["algorithm.first_split=5", "algorithm.eps1=2", "algorithm.eps2=0.05"] if name == "cfl"
          else ["algorithm.clusters=4"]),
    ]  # fmt: skip
    pool.run(2, train, [*run, f"run.dir={tmp_path / 'whole'}"])
    again = [*run, f"run.dir={tmp_path / 'cut'}", "run.resume=auto"]
    assert pool.run(2, stopped, again, 1, 25, signal.SIGTERM) == [75, 75]
    assert pool.run(3, train, again) == [0, 0, 0]
    assert_same(tmp_path / "whole", tmp_path / "cut")
    weights = np.load(tmp_path / "cut" / "W.npz")["weights"]
    assert weights[0].all()
    assert not weights[-1].all()


def flhc(twin: GroupTwin, rounds: int, after: int, linkage: str, cosine: bool, count: int,
         threshold: float) -> Result:  # fmt: skip
    for t in range(rounds):
        part = twin.work(t)
        if t + 1 >= after and len(twin.updates) == twin.n and not hasattr(twin, "at"):
            twin.at = t
            rows = np.stack([twin.updates[i] for i in range(twin.n)])
            distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
            if cosine:
                distances = 1 - cosines_of(rows)
            mean = distances.sum() / (twin.n * (twin.n - 1))
            twin.groups = merged(distances, linkage, count, threshold * mean)
        twin.average(part)
    return twin.result()


FLHC = {
    "clusters": (["clusters=3"], {"count": 3}, {}),
    "threshold": (["threshold=0.7", "linkage=complete"], {"threshold": 0.7, "linkage": "complete"}, {}),
    "cosine": (["threshold=0.5", "distance=cosine", "linkage=single"],
               {"threshold": 0.5, "cosine": True, "linkage": "single"}, {"steps": 2}),
    "some clients": (["clusters=2", "weighting=examples"], {"count": 2},
                     {"steps": 2, "count": 3, "by": "examples"}),
    "some clients, smaller steps": (["clusters=3"], {"count": 3}, {"count": 3, "halved_every": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", FLHC)
def test_flhc_is_its_dense_twin(case: str, pool: RankPool, unlike: Path, tmp_path: Path) -> None:
    keys, given, work = FLHC[case]
    default = {
        "rounds": 12,
        "after": 4,
        "linkage": "average",
        "cosine": False,
        "count": 0,
        "threshold": 0.0,
    }
    expected = flhc(twin(unlike, ETA, work), **(default | given))
    assert 7 < expected[1].sum() < 49, "clients were grouped"
    check_method(
        pool, unlike, tmp_path, expected, "run.rounds=12", f"optimizer.lr={ETA}",
        "algorithm.name=flhc", "algorithm.after_rounds=4", *(f"algorithm.{key}" for key in keys),
        *arguments_of(work),
    )  # fmt: skip


def test_flhc_with_the_true_number_of_clusters_is_oracle_from_then_on(
    pool: RankPool, tmp_path: Path
) -> None:
    """Grouped in round 1, before any average."""
    problem = four_clusters(tmp_path)
    runs = {"flhc": ["algorithm.after_rounds=1"], "oracle": []}
    (x, w), (same_x, same_w) = (
        trained(pool, problem, tmp_path / name, 2, *SHORT, f"algorithm.name={name}", *more)
        for name, more in runs.items()
    )
    np.testing.assert_allclose(x, same_x, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(w, same_w)


# -- PACFL ---------------------------------------------------------------------------------------------


def pacfl(twin: GroupTwin, rounds: int, linkage: str, count: int, threshold: float) -> Result:
    """A client's data are its center; a subspace of one vector has one principal angle."""
    centers = twin.centers
    angles = [[subspace_angles(a[:, None], b[:, None])[0] for b in centers] for a in centers]
    twin.groups = merged(np.degrees(angles), linkage, count, threshold)
    for t in range(rounds):
        twin.average(twin.work(t))
    return twin.result()


PACFL = {
    "clusters": (["clusters=3"], {"count": 3}, {}),
    "threshold": (["threshold=20", "linkage=complete", "by_class=false"],
                  {"threshold": 20.0, "linkage": "complete"}, {"steps": 2}),
    "some clients": (["clusters=2", "angle=mean", "linkage=single", "weighting=examples"],
                     {"count": 2, "linkage": "single"}, {"steps": 2, "count": 3, "by": "examples"}),
}  # fmt: skip


@pytest.mark.parametrize("case", PACFL)
def test_pacfl_is_its_dense_twin(case: str, pool: RankPool, unlike: Path, tmp_path: Path) -> None:
    keys, given, work = PACFL[case]
    default = {"rounds": 8, "linkage": "average", "count": 0, "threshold": 0.0}
    expected = pacfl(twin(unlike, ETA, work), **(default | given))
    assert 7 < expected[1].sum() < 49, "clients were grouped"
    check_method(
        pool, unlike, tmp_path, expected, "run.rounds=8", f"optimizer.lr={ETA}",
        "algorithm.name=pacfl", *(f"algorithm.{key}" for key in keys), *arguments_of(work),
    )  # fmt: skip


def test_pacfl_with_the_true_number_of_clusters_is_oracle(pool: RankPool, tmp_path: Path) -> None:
    problem = four_clusters(tmp_path, LINES)
    (x, w), (same_x, same_w) = (
        trained(pool, problem, tmp_path / name, 2, *SHORT, f"algorithm.name={name}")
        for name in ("pacfl", "oracle")
    )
    np.testing.assert_allclose(x, same_x, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(w, same_w)


def test_a_newcomer_joins_the_group_with_the_nearest_data(pool: RankPool, tmp_path: Path) -> None:
    """Client 11 is like 3 and 7, and gets their model."""
    events = tmp_path / "events.csv"
    events.write_text("round,client,event\n4,11,join\n4,6,join\n")
    x, w = trained(
        pool, four_clusters(tmp_path, LINES), tmp_path / "run", 3, *SHORT, "algorithm.name=pacfl",
        f"membership={events}",
    )  # fmt: skip
    same = np.equal.outer(np.arange(12) % 4, np.arange(12) % 4)
    np.testing.assert_array_equal(w, same)
    np.testing.assert_allclose(x[11], x[3], rtol=0, atol=1e-12)


# -- Dada ----------------------------------------------------------------------------------------------


def dada(problem: Path, steps: int, count: int, *, mu1: float, mu2: float, lam: float, delta: float,
         every: int, inner: int, confidence: np.ndarray, relative: bool) -> Result:  # fmt: skip
    dense = DenseClients(problem, ETA)
    n = dense.n
    w = (1 - np.eye(n)) / (n - 1)
    shown = w
    for t in range(ROUNDS):
        part = taking_part(t, n, count)
        losses = []
        for i in range(n):  # the mean over the local steps
            y, along = dense.x[i], []
            for _ in range(steps):
                along.append(dense.loss(i, y))
                y = dense.local_work(i, y, 1)
            losses.append(np.mean(along))
        if t % every == 0:
            costs = {
                (i, j): mu1 / 2 * np.sum((dense.x[i] - dense.x[j]) ** 2)
                + confidence[i] * losses[i]
                + confidence[j] * losses[j]
                for i in part
                for j in part
                if i != j
            }
            unit = np.median(list(costs.values())) if relative else 1.0
            for _ in range(inner):
                d = w.sum(axis=1) + delta
                step = 1 / (mu2 * (2 * lam + 2 * (len(part) - 1) / min(d[part]) ** 2))
                new = w.copy()
                for i in part:
                    for j in part:
                        if i != j:
                            slope = costs[i, j] / unit
                            slope += mu2 * (2 * lam * w[i, j] - 1 / d[i] - 1 / d[j])
                            new[i, j] = max(0, w[i, j] - step * slope)
                w = new
            degrees = w.sum(axis=1, keepdims=True)
            shown = w / np.where(degrees > 0, degrees, 1)
        moved = dense.x.copy()
        for i in part:
            worked = dense.local_work(i, dense.x[i], steps) - dense.x[i]
            pull = sum(shown[i, j] * (dense.x[i] - dense.x[j]) for j in part)
            moved[i] = dense.x[i] + confidence[i] * worked - ETA * mu1 * pull
        dense.x = moved
    return dense.x, shown


DADA = {
    "default": ([], {}),
    "few links": (["mu1=2", "mu2=3", "lambda=0.05", "costs=absolute"],
                  {"mu1": 2.0, "mu2": 3.0, "lam": 0.05, "relative": False}),
    "sometimes": (["graph_every=3", "graph_steps=2", "delta=1"], {"every": 3, "inner": 2, "delta": 1.0}),
    "some clients": (["mu2=4"], {"mu2": 4.0, "count": 4, "steps": 2}),
    "confidence": (["confidence=examples", "mu2=5", "costs=absolute"],
                   {"mu2": 5.0, "relative": False, "confidence": np.arange(1, 8) / 7, "steps": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", DADA)
def test_dada_is_its_dense_twin(case: str, pool: RankPool, unlike: Path, tmp_path: Path) -> None:
    keys, given = DADA[case]
    default = {"steps": 1, "count": 0, "mu1": 1.0, "mu2": 0.5, "lam": 0.5, "delta": 0.1, "every": 1,
               "inner": 10, "confidence": np.ones(7), "relative": True}  # fmt: skip
    expected = dada(unlike, **(default | given))
    check_method(
        pool, unlike, tmp_path, expected, *SHORT, "algorithm.name=dada",
        *(f"algorithm.{key}" for key in keys), f"local.steps={given.get('steps', 1)}",
        *([f"participation.count={given['count']}"] if "count" in given else []),
    )  # fmt: skip


def warnings_of(folder: Path, *arguments: str) -> list[str]:
    assert main([*QUIET, *arguments, f"run.dir={folder}"]) == 0
    return [row["message"] for row in rows(folder, "warning")]


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_dadas_defaults_suit_losses_of_any_unit(
    scale: float, pool: RankPool, unlike: Path, tmp_path: Path
) -> None:
    """All distances are so many times larger, so that what a link costs is `scale` squared times as much."""
    arrays = dict(np.load(unlike))
    more = {key: scale * arrays[key] for key in ("centers", "start")}
    np.savez(tmp_path / "scaled.npz", **arrays | more)
    keys = ["algorithm.name=dada", *SHORT]
    (x, w), (scaled_x, scaled_w) = (
        trained(pool, path, tmp_path / str(number), 2, *keys)
        for number, path in enumerate((unlike, tmp_path / "scaled.npz"))
    )
    assert (w.sum(axis=1) > 0.99).all()
    np.testing.assert_allclose(scaled_w, w, rtol=0, atol=1e-9)
    np.testing.assert_allclose(scaled_x, scale * x, rtol=1e-9)


def test_dada_without_links_says_so(tmp_path: Path) -> None:
    """20 clients with a loss of 6."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(20, 2))
    centers *= np.sqrt(12.0) / np.linalg.norm(centers, axis=1, keepdims=True)
    np.savez(tmp_path / "far.npz", centers=centers, curvature=np.ones(20), start=np.zeros(2))
    run = ["task.name=quadratic", f"task.file={tmp_path / 'far.npz'}", "algorithm.name=dada", "run.rounds=2",
           "optimizer.lr=0.01", "run.log_weights_every=1"]  # fmt: skip
    for costs, warned in (("absolute", True), ("relative", False)):
        found = warnings_of(tmp_path / costs, *run, f"algorithm.costs={costs}")
        assert any("all weights are 0: this is Local" in one for one in found) == warned
        assert np.load(tmp_path / costs / "W.npz")["weights"][-1].any() != warned


@pytest.mark.parametrize(
    ("arguments", "lr", "remedy"),
    [
        ("fedamp algorithm.lambda=4", 0.5, "set optimizer.lr below 0.5"),
        (
            "fedamp algorithm.lambda=1 algorithm.alpha=0.1 algorithm.sigma=2",
            0.2,
            "set optimizer.lr below 0.2",
        ),
        ("heurfedamp algorithm.lambda=4", 0.5, "set optimizer.lr below 0.5"),
        ("dada algorithm.mu1=2", 0.5, "set algorithm.mu1 below 2"),
    ],
)
def test_a_pull_that_overshoots_is_told(
    arguments: str, lr: float, remedy: str, problem: Path, tmp_path: Path
) -> None:
    run = ["task.name=quadratic", f"task.file={problem}", "run.rounds=1"]
    given = f"algorithm.name={arguments}".split()
    for size, told in ((lr, True), (0.9 * lr, False)):
        found = warnings_of(tmp_path / str(size), *run, *given, f"optimizer.lr={size}")
        assert any(remedy in one for one in found) == told


def test_models_that_diverge_name_the_pull() -> None:
    for name, key in (
        ("fedamp", "lambda"),
        ("heurfedamp", "lambda"),
        ("pfedgraph", "lambda"),
        ("dada", "mu1"),
    ):
        section = load_config(None, [f"algorithm.name={name}"]).algorithm
        assert section.step_keys == (f"algorithm.{key}",)


@pytest.mark.parametrize("count", [0, 4])
def test_fedamps_link_is_above_half_of_what_equal_models_give(
    count: int, pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """Also where only some clients take part."""
    keys = ["algorithm.name=fedamp", "run.rounds=1"]
    keys += [f"participation.count={count}"] if count else []
    _, w = trained(pool, problem, tmp_path / "run", 2, *keys)
    section = load_config(None, keys).algorithm
    np.testing.assert_allclose(np.unique(w[w > 0])[0], 2 * section.equal_share(7), rtol=1e-12)


def test_fedamp_sends_no_rows_of_w(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """Its xi is symmetric: a rank knows what the others need."""
    seen = pool.run(2, symmetries, ["task.name=quadratic", f"task.file={problem}", *SHORT,
                                    f"run.dir={tmp_path / 'run'}", "algorithm.name=fedamp", "comm.check=true",
                                    "participation.count=5"])  # fmt: skip
    assert seen == [[True] * ROUNDS] * 2


def symmetries(session: Session, arguments: list[str]) -> list[bool]:
    """Train; return whether the weights of each call of `mix` were symmetric."""
    seen, keep = [], MixingExchange.mix

    def mix(self: MixingExchange, weights: Weights, *rest: Any) -> Any:
        seen.append(weights.symmetric)
        return keep(self, weights, *rest)

    with mock.patch.object(MixingExchange, "mix", mix):
        assert train(session, arguments) == 0
    return seen


@pytest.mark.parametrize("name", ["pfedgraph", "heurfedamp"])
def test_updates_are_measured_from_where_the_models_of_another_run_are(
    name: str, pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """All have gone far from x^0 together, which would make every cosine nearly 1; also after a restart."""
    arrays = dict(np.load(problem))
    moved = {key: arrays[key] + 100.0 * (key == "centers") for key in ("centers", "start")}
    file = tmp_path / "far.npz"
    np.savez(file, **arrays | moved)
    first = ["algorithm.name=fedavg", "run.rounds=100"]
    trained(pool, file, tmp_path / "source", 1, *first)
    run = [
        "task.name=quadratic", f"task.file={file}", "run.dtype=float64",
        f"run.init_from={tmp_path / 'source'}", f"algorithm.name={name}", "algorithm.lambda=0",
        "run.rounds=30", f"optimizer.lr={ETA}", "local.steps=2", "comm.deterministic=true",
        "log.flush_every=1",
    ]  # fmt: skip
    run += ["algorithm.compare=updates"] if name == "heurfedamp" else []
    whole, parts = tmp_path / "whole", [*run, f"run.dir={tmp_path / 'parts'}", "run.resume=auto"]
    assert pool.run(2, train, [*run, f"run.dir={whole}"]) == [0, 0]
    assert pool.run(2, stopped, parts, 1, 10, signal.SIGTERM) == [75, 75]
    assert pool.run(3, train, parts) == [0, 0, 0]
    assert_same(whole, tmp_path / "parts")
    w = np.load(whole / "W.npz")["weights"][-1]
    same = np.equal.outer(np.arange(7) % 3, np.arange(7) % 3) & ~np.eye(7, dtype=bool)
    apart = np.arange(7)[:, None] % 3 != np.arange(7) % 3
    assert w[same].min() > 2 * w[apart].max()


def test_pfedgraph_that_averages_all_alike_says_so(unlike: Path, tmp_path: Path) -> None:
    run = ["task.name=quadratic", f"task.file={unlike}", "algorithm.name=pfedgraph", "run.rounds=3",
           "run.log_weights_every=1"]  # fmt: skip
    for weighting in ("equal", "examples"):
        for above, warned in (("-1", True), ("1", False)):
            given = [f"algorithm.same_above={above}", f"algorithm.weighting={weighting}"]
            given += ["algorithm.alpha=5"]  # the weights of all stay above 0
            found = warnings_of(tmp_path / f"{weighting}{above}", *run, *given)
            assert any("average alike, as FedAvg" in one for one in found) == warned


# -- refusals ------------------------------------------------------------------------------------------

REFUSED = {
    "fedamp algorithm.alpha=1 algorithm.sigma=1": "set algorithm.alpha to at most 0.142857",
    "fedamp algorithm.alpha=1": "set algorithm.sigma too",
    "heurfedamp algorithm.self_weight=1.5": "algorithm.self_weight",
    "pfedgraph algorithm.alpha=0": "algorithm.alpha",
    "pfedgraph algorithm.penalty=repulsion algorithm.lambda=0": "raise algorithm.lambda",
    "cfl algorithm.min_size=1": "algorithm.min_size",
    "flhc algorithm.clusters=2 algorithm.threshold=1": "drop one of them",
    "flhc algorithm.clusters=9": "more groups than the 8 clients",
    "pacfl algorithm.vectors=0": "algorithm.vectors",
    "pacfl algorithm.clusters=2 algorithm.threshold=1": "drop one of them",
    "prediction_based task.validation_fraction=0": "set task.validation_fraction=0.1",
    "dada algorithm.delta=0": "algorithm.delta",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_settings_are_refused_in_one_line(
    arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"algorithm.name={arguments}".split()
    assert main([*QUIET, *given, f"run.dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert REFUSED[arguments] in line
    assert not (tmp_path / "run").exists()


def test_rows_do_not_tell_of_a_w_that_was_replaced_since_the_last_snapshot(
    problem: Path, tmp_path: Path
) -> None:
    """Groups are found in round 3; W is gathered after rounds 0, 5 and 6."""
    run = [
        *QUIET, "task.name=quadratic", f"task.file={problem}", f"run.dir={tmp_path}", "run.eval_every=0",
        "algorithm.name=flhc", "algorithm.after_rounds=3", "algorithm.clusters=3",
        "run.log_weights_every=5", *SHORT,
    ]  # fmt: skip
    assert main(run) == 0
    found = {row["round"]: row["components"] for row in rows(tmp_path, "round")}
    assert found == {1: 1, 2: 1, 3: None, 4: None, 5: None, 6: 3}
