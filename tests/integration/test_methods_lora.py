"""Methods for LoRA adapters, and averages by the similarity of models: each against a twin on one array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_local_work import DenseFedAvg, trained_rows
from methods import RANKS, DenseClients, check_method, trained, write_problem
from pool import RankPool
from problems import rows, train, train_and_weights, write_texts
from safetensors.numpy import load_file
from vision_data import write_images

from cobo_dist import reference
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.tasks.registry import build_task

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


def averaged(
    problem: Path, weigh: Callable[[np.ndarray], np.ndarray], every: int, count: int
) -> Result:
    """Clients average every few rounds, with rows of W that are a function of the models [m, d]."""
    dense, w = DenseClients(problem, ETA), np.eye(N)
    for t in range(ROUNDS):
        part = sorted(seeds.permutation(seeds.key(0, "clients", t), N).tolist()[:count])
        for i in part:
            dense.x[i] = dense.local_work(i, dense.x[i], 2)
        if (t + 1) % every == 0:
            rows_m = weigh(dense.x[part])
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
    expected = averaged(problem, lambda x: softmax(cosines_of(x) / temperature), every, count)
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


def prediction_rows(x_md: np.ndarray, temperature: float, top: int) -> np.ndarray:
    """A model's prediction for anything is its point; of it the `top` largest numbers count."""
    shown = x_md.copy()
    least = np.argsort(shown, axis=1)[:, : shown.shape[1] - top]
    np.put_along_axis(shown, least, 0.0, axis=1)
    apart = np.abs(shown[:, None] - shown[None]).sum(axis=2)
    return softmax(-10 * apart / apart.sum(axis=1, keepdims=True) / temperature)


@pytest.mark.parametrize(("temperature", "top", "count"), [(1.0, 100, N), (0.3, 2, N), (1.0, 3, 4)])
def test_prediction_based(
    pool: RankPool, tmp_path: Path, temperature: float, top: int, count: int
) -> None:
    problem = write_problem(tmp_path)
    expected = averaged(problem, lambda x: prediction_rows(x, temperature, min(top, 5)), 1, count)
    assert expected[1].std() > 0.005, "a problem in which weights differ"
    check_method(
        pool, problem, tmp_path, expected, "algorithm.name=prediction_based", "local.steps=2",
        f"algorithm.temperature={temperature}", f"algorithm.top={top}", f"run.rounds={ROUNDS}",
        f"participation.count={count}",
    )  # fmt: skip


def test_predictions_of_text_are_compared(
    pool: RankPool, language: list[str], tmp_path: Path
) -> None:
    """Models that see the same text in the same order stay one; those of other text part."""
    given = [*language, "algorithm.name=prediction_based", "algorithm.examples=3", "algorithm.top=7",
             "run.rounds=3", "optimizer.lr=0.1"]  # fmt: skip
    found = [
        np.concatenate(
            pool.run(ranks, train_and_weights, [*given, f"run.dir={tmp_path / str(ranks)}"])
        )
        for ranks in (1, 3)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-10)
    w = found[0]
    np.testing.assert_allclose(w.sum(axis=1), 1, atol=1e-12)
    assert (w.argmax(axis=1) == np.arange(len(w))).all(), "nobody predicts as a client itself"


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


# -- CoBo's alignment of some columns ----------------------------------------------------------------------

BODY = ("1.weight", "1.bias")


class DenseCoBo(DenseFedAvg):
    """CoBo from the steps of `cobo_dist.reference`, with alignments of some parameters."""

    def gradient(self, client: int, point_d: torch.Tensor, t: int) -> torch.Tensor:
        model = self.models[client]
        torch.nn.utils.vector_to_parameters(point_d, model.parameters())
        (numbers,) = self.batches(client, t)
        self.backward(client, numbers)
        grads = [one.grad for one in model.parameters() if one.grad is not None]
        return torch.cat([one.flatten() for one in grads])

    def cobo(self, rounds: int, aligned: tuple[str, ...]) -> Result:
        algorithm: Any = self.config.algorithm
        mask_d = torch.cat([
            torch.full((one.numel(),), float(name in aligned)).double()
            for name, one in self.models[0].named_parameters()
        ])  # fmt: skip
        x_nd = torch.from_numpy(self.rows())
        w_nn = torch.ones(self.n, self.n, dtype=torch.float64)
        pairs = torch.combinations(torch.arange(self.n)).tolist()
        for t in range(rounds):

            def gradient(i: int, point_d: torch.Tensor, t: int = t) -> torch.Tensor:
                return self.gradient(i, point_d, t)

            def some(i: int, point_d: torch.Tensor, t: int = t) -> torch.Tensor:
                return self.gradient(i, point_d, t) * mask_d

            w_nn = reference.client_selection(x_nd, w_nn, some, pairs, algorithm.gamma)
            lr = self.config.optimizer.lr
            x_nd = reference.model_training(x_nd, w_nn, gradient, algorithm.rho, lr)
        return x_nd.numpy(), w_nn.numpy()


def test_alignment_of_some_columns(pool: RankPool, tmp_path: Path) -> None:
    """Models and W on 1, 2, 3 ranks are the twin's; W is another one than with all columns."""
    images = write_images(tmp_path / "images.npz", train=60, test=20, size=4)
    given = [
        "task.name=cross_device", f"data.file={images}", "task.cluster_sizes=[1, 4]",
        "task.validation_fraction=0", "model.name=mlp", "model.hidden=[4]", "data.augment=false",
        "data.batch_size=5", "run.dtype=float64", "run.rounds=5", "optimizer.lr=0.1", "run.eval_every=0",
        "optimizer.momentum=0", "optimizer.weight_decay=0", "algorithm.midpoint_data=shared",
        "algorithm.sampling.name=all", "algorithm.gamma=0.1", "algorithm.rho=0.3",
    ]  # fmt: skip
    some = [*given, "algorithm.alignment_columns=['1']"]
    x, w = DenseCoBo(some).cobo(5, BODY)
    whole = DenseCoBo(given).cobo(5, (*BODY, "3.weight", "3.bias"))
    off = ~np.eye(len(w), dtype=bool)
    assert w[off].std() > 0.05, "a problem in which W changes"
    assert np.abs(whole[1] - w).max() > 1e-2
    for deterministic in ("false", "true"):
        found = []
        for ranks in RANKS:
            folder = tmp_path / f"{deterministic}{ranks}"
            more = [f"comm.deterministic={deterministic}", f"run.dir={folder}"]
            weights = np.concatenate(pool.run(ranks, train_and_weights, [*some, *more]))
            np.testing.assert_allclose(weights[off], w[off], rtol=0, atol=1e-10)
            found.append(trained_rows(folder, DenseCoBo(some)))
            np.testing.assert_allclose(found[-1], x, rtol=0, atol=1e-10)
        if deterministic == "true":
            assert all(one.tobytes() == found[0].tobytes() for one in found[1:])


def test_only_aligned_columns_travel(pool: RankPool, language: list[str], tmp_path: Path) -> None:
    """As planned: 3 gradients of lora_B in place of 3 whole ones, on a simplex of three ranks."""
    sent, given = [], [
        *language, "algorithm.domain=simplex", "algorithm.sampling.name=all", "algorithm.gamma=0",
        "run.rounds=2",
    ]  # fmt: skip
    for number, more in enumerate(([], ["algorithm.alignment_columns=['*lora_B*']"])):
        settings = [*given, *more]
        pool.run(3, train, [*settings, f"run.dir={tmp_path / str(number)}"])
        config = load_config(None, settings)
        task = build_task(config.task, config.model, config.data, config.run.seed, torch.float64)
        dry_run = DryRun(config, task, 3)
        for row in rows(tmp_path / str(number), "round"):
            assert dry_run.round(row["round"]).bytes["gradients"] == row["bytes_gradients"]
        sent.append(row["bytes_gradients"])
    left_out = factors(tmp_path / "0", "A").shape[1]
    assert sent[0] - sent[1] == 3 * 8 * left_out


def test_columns_without_alignment_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.alignment_columns is about pairs"):
        load_config(None, ["algorithm.selection=difference", "algorithm.alignment_columns=x"])
