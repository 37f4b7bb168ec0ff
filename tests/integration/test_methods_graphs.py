"""Methods that learn a graph or groups of clients, against dense twins and at their extremes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from methods import DenseClients, check_method, trained, write_problem
from pool import RankPool
from problems import QUIET, rows
from scipy.optimize import minimize

from cobo_dist.algorithms.pfedgraph import graph_rows
from cobo_dist.cli.train import main
from cobo_dist.maths import seeds

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


def fedamp_rows(x: np.ndarray, sigma: float = 0.0, alpha: float = 0.0) -> np.ndarray:
    """Attention among all rows of x."""
    m = len(x)
    s = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    sigma = sigma or float(np.median(s[np.triu_indices(m, 1)]))
    alpha = alpha or sigma / (2 * (m - 1))
    xi = np.exp(-s / sigma) * alpha / sigma if sigma else np.full((m, m), 0.5 / (m - 1))
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
            fedamp_rows(compared, **numbers)
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


# -- Dada ----------------------------------------------------------------------------------------------


def dada(problem: Path, steps: int, count: int, *, mu1: float, mu2: float, lam: float, delta: float,
         every: int, inner: int, confidence: np.ndarray) -> Result:  # fmt: skip
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
            for _ in range(inner):
                d = w.sum(axis=1) + delta
                step = 1 / (mu2 * (2 * lam + 2 * (len(part) - 1) / min(d[part]) ** 2))
                new = w.copy()
                for i in part:
                    for j in part:
                        if i != j:
                            slope = mu1 / 2 * np.sum((dense.x[i] - dense.x[j]) ** 2)
                            slope += confidence[i] * losses[i] + confidence[j] * losses[j]
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
    "few links": (["mu1=2", "mu2=3", "lambda=0.05"], {"mu1": 2.0, "mu2": 3.0, "lam": 0.05}),
    "sometimes": (["graph_every=3", "graph_steps=2", "delta=1"], {"every": 3, "inner": 2, "delta": 1.0}),
    "some clients": (["mu2=4"], {"mu2": 4.0, "count": 4, "steps": 2}),
    "confidence": (["confidence=examples", "mu2=5"],
                   {"mu2": 5.0, "confidence": np.arange(1, 8) / 7, "steps": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", DADA)
def test_dada_is_its_dense_twin(case: str, pool: RankPool, unlike: Path, tmp_path: Path) -> None:
    keys, given = DADA[case]
    default = {"steps": 1, "count": 0, "mu1": 1.0, "mu2": 0.5, "lam": 0.5, "delta": 0.1, "every": 1,
               "inner": 10, "confidence": np.ones(7)}  # fmt: skip
    expected = dada(unlike, **(default | given))
    check_method(
        pool, unlike, tmp_path, expected, *SHORT, "algorithm.name=dada",
        *(f"algorithm.{key}" for key in keys), f"local.steps={given.get('steps', 1)}",
        *([f"participation.count={given['count']}"] if "count" in given else []),
    )  # fmt: skip


def test_pfedgraph_that_averages_all_alike_says_so(tmp_path: Path) -> None:
    run = ["algorithm.name=pfedgraph", "run.rounds=3", "model.hidden=[4]", "run.eval_every=0",
           "run.log_weights_every=1", "algorithm.alpha=0.1"]  # fmt: skip
    for above, warned in (("-1", True), ("1", False)):
        given = [*run, f"algorithm.same_above={above}", f"run.dir={tmp_path / above}"]
        assert main([*QUIET, *given]) == 0
        warnings = [row["message"] for row in rows(tmp_path / above, "warning")]
        assert any("equal shares, as FedAvg" in one for one in warnings) == warned


# -- refusals ------------------------------------------------------------------------------------------

REFUSED = {
    "fedamp algorithm.alpha=1 algorithm.sigma=1": "set algorithm.alpha to at most 0.142857",
    "fedamp algorithm.alpha=1": "set algorithm.sigma too",
    "heurfedamp algorithm.self_weight=1.5": "algorithm.self_weight",
    "pfedgraph algorithm.alpha=0": "algorithm.alpha",
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
