"""Methods for LoRA adapters, and averages by the similarity of models: each against a twin on one array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from methods import DenseClients, check_method, trained, write_problem
from pool import RankPool
from problems import train, train_and_weights, write_texts
from safetensors.numpy import load_file

from cobo_dist.maths import seeds

N, ETA, ROUNDS = 7, 0.1, 6
Result = tuple[np.ndarray, np.ndarray]

# -- on adapters ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny model with adapters, and three clients; B moves far enough for A to have a gradient."""
    pytest.importorskip("peft", reason="needs the extra lm")
    texts = write_texts(tmp_path_factory.mktemp("texts") / "texts")
    return [
        "task.name=language", "model.name=tiny-gpt2", "model.width=8", "model.layers=1", "task.context=8",
        "data.batch_size=2", "task.languages=[]", f"data.text_dir={texts}", f"data.root={texts.parent}",
        "run.dtype=float64", "run.eval_every=0", "optimizer.lr=0.5", "run.threads=1",
    ]  # fmt: skip


def factors(folder: Path, factor: str) -> np.ndarray:
    """Return one factor of all clients' adapters, [n, k]."""
    found = [load_file(path) for path in sorted(folder.glob("models/*/adapter_model.safetensors"))]
    names = [name for name in sorted(found[0]) if f"lora_{factor}" in name]
    assert names
    return np.stack([np.concatenate([one[name].ravel() for name in names]) for one in found])


def test_factors_that_are_shared(pool: RankPool, language: list[str], tmp_path: Path) -> None:
    """After one round of local work: FedSA-LoRA averages A, FFA-LoRA averages B and keeps A at its start."""
    alone = {}
    for steps in (1, 3):
        folder = tmp_path / f"local{steps}"
        pool.run(2, train, [*language, "algorithm.name=local", "run.rounds=1",
                            f"local.steps={steps}", f"run.dir={folder}"])  # fmt: skip
        alone[steps] = {factor: factors(folder, factor) for factor in "AB"}
    start = alone[1]["A"]  # B starts at 0, so A has no gradient in the first step
    assert (start == start[0]).all()
    for factor in "AB":
        assert np.ptp(alone[3][factor], axis=0).max() > 1e-3, "clients differ"
    fedsa, ffa = tmp_path / "fedsa", tmp_path / "ffa"
    pool.run(2, train, [*language, "algorithm.name=fedsa_lora", "run.rounds=1", "local.steps=3",
                        f"run.dir={fedsa}"])  # fmt: skip
    mean = np.tile(alone[3]["A"].mean(axis=0), (3, 1))
    np.testing.assert_allclose(factors(fedsa, "A"), mean, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(factors(fedsa, "B"), alone[3]["B"])
    pool.run(2, train, [*language, "algorithm.name=ffa_lora", "run.rounds=1", f"run.dir={ffa}"])
    mean = np.tile(alone[1]["B"].mean(axis=0), (3, 1))
    np.testing.assert_array_equal(factors(ffa, "A"), start)
    np.testing.assert_allclose(factors(ffa, "B"), mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", ["own", "loaded"])
def test_frozen_factors_are_one_for_all(
    pool: RankPool, language: list[str], tmp_path: Path, start: str
) -> None:
    """Else the mean of B means nothing: x^0's A, or the mean of those of the run that is gone on with."""
    local = [*language, "algorithm.name=local", "run.rounds=1", "local.steps=3"]
    pool.run(2, train, [*local, f"run.dir={tmp_path / 'local'}"])
    first = [*language, "algorithm.name=local", "run.rounds=1", "optimizer.lr=0"]
    pool.run(1, train, [*first, f"run.dir={tmp_path / 'start'}"])
    given = [*language, "algorithm.name=ffa_lora", "run.rounds=2", f"run.dir={tmp_path / 'run'}"]
    more = "run.start=own" if start == "own" else f"run.init_from={tmp_path / 'local'}"
    pool.run(2, train, [*given, more])
    found = factors(tmp_path / "run", "A")
    expected = factors(tmp_path / ("start" if start == "own" else "local"), "A").mean(axis=0)
    assert (found == found[0]).all()
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-12)


# -- similarity based weights ----------------------------------------------------------------------------


def cosines_of(rows_nd: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows_nd, axis=1)
    return rows_nd @ rows_nd.T / np.outer(norms, norms)


def softmax(scores_mm: np.ndarray) -> np.ndarray:
    parts = np.exp(scores_mm - scores_mm.max(axis=1, keepdims=True))
    return np.asarray(parts / parts.sum(axis=1, keepdims=True))


def similarity_based(problem: Path, temperature: float, every: int, count: int) -> Result:
    dense, w = DenseClients(problem, ETA), np.eye(N)
    for t in range(ROUNDS):
        part = sorted(seeds.permutation(seeds.key(0, "clients", t), N).tolist()[:count])
        for i in part:
            dense.x[i] = dense.local_work(i, dense.x[i], 2)
        if (t + 1) % every == 0:
            rows_m = softmax(cosines_of(dense.x[part]) / temperature)
            w[part] = 0.0
            w[np.ix_(part, part)] = rows_m
            dense.x[part] = rows_m @ dense.x[part]
    return dense.x, w


@pytest.mark.parametrize(
    ("temperature", "every", "count"), [(1.0, 1, N), (0.05, 3, N), (0.2, 1, 4)]
)
def test_similarity_based(
    pool: RankPool, tmp_path: Path, temperature: float, every: int, count: int
) -> None:
    problem = write_problem(tmp_path)
    expected = similarity_based(problem, temperature, every, count)
    assert expected[1].std() > 0.005, "a problem in which weights differ"
    check_method(
        pool, problem, tmp_path, expected, "algorithm.name=similarity_based", "local.steps=2",
        f"algorithm.temperature={temperature}", f"algorithm.every={every}", f"run.rounds={ROUNDS}",
        f"participation.count={count}",
    )  # fmt: skip


def test_similarity_based_at_a_high_temperature_is_fedavg(pool: RankPool, tmp_path: Path) -> None:
    problem, found = write_problem(tmp_path), []
    for more in (["fedavg"], ["similarity_based", "algorithm.temperature=1e15"]):
        given = [f"algorithm.name={more[0]}", *more[1:], f"run.rounds={ROUNDS}"]
        found.append(trained(pool, problem, tmp_path / more[0], 2, *given)[0])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-12)


def test_similarity_of_one_factor(pool: RankPool, language: list[str], tmp_path: Path) -> None:
    """Cosines of B decide, and whole adapters are averaged."""
    one = [*language, "run.rounds=1", "local.steps=3"]
    pool.run(1, train, [*one, "algorithm.name=local", f"run.dir={tmp_path / 'local'}"])
    given = [
        *one, "algorithm.name=similarity_based", "algorithm.columns=['*lora_B*']",
        "algorithm.temperature=0.2", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    w = np.concatenate(pool.run(3, train_and_weights, given))
    local = {factor: factors(tmp_path / "local", factor) for factor in "AB"}
    np.testing.assert_allclose(w, softmax(cosines_of(local["B"]) / 0.2), rtol=0, atol=1e-10)
    for factor in "AB":
        np.testing.assert_allclose(
            factors(tmp_path / "run", factor), w @ local[factor], rtol=0, atol=1e-10
        )
