"""CoBo's coupling and client selection beside the paper's: against the reference, their extremes, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_cobo import dense_cobo
from pool import RankPool
from problems import models, train_and_weights, write_quadratic

import cobo_dist
from cobo_dist import reference
from cobo_dist.config.loading import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.maths.sampling import draw_pairs

ROUNDS = 40
SAMPLED = ("algorithm.sampling.rate=3",)
CAPPED = "algorithm.coupling=capped"
EVIDENCE = "algorithm.selection=evidence"
DIFFERENCE = "algorithm.selection=difference"
EXAMPLES, NOISE = np.array([2, 3, 4, 5, 6, 7, 8]), 1.0
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "margin": (("algorithm.margin=0.5",), {"margin": 0.5}),
    "endless margin": (("algorithm.margin=1e9",), {"margin": float("inf")}),
    "threshold": (("algorithm.threshold=0.3",), {"threshold": 0.3}),
    "capped": ((CAPPED,), {"capped": True}),
    "capped, large rho": ((CAPPED, "algorithm.rho=1e6"), {"capped": True, "rho": 1e6}),
    "capped, fixed": ((CAPPED, "algorithm.penalty=fixed"), {"capped": True, "fixed": True}),
    "evidence": (
        (EVIDENCE, "algorithm.start=zeros", "algorithm.evidence.certainty=0.5"),
        {"w_0": 0.0, "certainty": 0.5},
    ),
    "difference": (
        ("algorithm.difference.window=4", "algorithm.difference.tolerance=3"),
        {"window": 4, "tolerance": 3.0},
    ),
    "difference, capped": (
        (CAPPED, "algorithm.difference.step=0.05", "algorithm.order=models_first"),
        {"capped": True, "models_first": True, "window": 10, "step": 0.05},
    ),
    "sketch": (("algorithm.sketch=3",), {"sketch": 3}),
    "all": (
        (CAPPED, EVIDENCE, "algorithm.alignment=cosine", "algorithm.evidence.certainty=1"),
        {"capped": True, "cosine": True, "certainty": 1.0},
    ),
}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quadratic(tmp_path_factory.mktemp("problem") / "problem.npz", examples=EXAMPLES)


def arguments(problem: Path, folder: Path, *more: str) -> list[str]:
    is_difference = any("difference" in one for one in more)
    return [
        "task.name=quadratic", f"task.file={problem}", f"run.dir={folder}", "run.dtype=float64",
        f"run.rounds={ROUNDS}", "algorithm.rho=0.3", "algorithm.gamma=0.05",
        *((DIFFERENCE, f"task.noise={NOISE}") if is_difference else SAMPLED), *more,
    ]  # fmt: skip


def drawn() -> list[list[tuple[int, int]]]:
    return [
        [tuple(pair) for pair in draw_pairs(seeds.key(0, "pairs", t), 7, 3 / 7).tolist()]
        for t in range(ROUNDS)
    ]


def expected(problem: Path, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    if "certainty" in how:
        zeros = (torch.zeros(7, 7, dtype=torch.float64) for _ in range(2))
        how["evidence"] = reference.Evidence(*zeros, certainty=how.pop("certainty"))
    if "window" in how:
        examples = torch.from_numpy(EXAMPLES).double()
        keys = {key: how.pop(key) for key in ("window", "tolerance", "step") if key in how}
        how["difference"], how["noise"] = reference.Difference(examples, **keys), NOISE
    return dense_cobo(problem, drawn(), **{"rho": 0.3, "gamma": 0.05, "eta": 0.1} | how)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_equals_the_reference(
    pool: RankPool, problem: Path, tmp_path: Path, name: str, ranks: int
) -> None:
    keys, how = VARIANTS[name]
    w_run = pool.run(ranks, train_and_weights, arguments(problem, tmp_path / "run", *keys))
    x, w = expected(problem, **how)
    found = np.stack(list(models(tmp_path / "run").values()))
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-10)
    off = ~np.eye(7, dtype=bool)
    np.testing.assert_allclose(np.concatenate(w_run)[off], w[off], rtol=0, atol=1e-10)
    assert 0.0 < w[off].mean() < 1.0, "a problem in which W changes"


PRIVATE = ("algorithm.privacy={clip: 1, noise: 3}",)


@pytest.mark.parametrize(
    "name", ["margin", "difference", "sketched difference", "sketch", "private sketch", "all"]
)
def test_a_variant_is_bitwise_the_same_resumed_on_other_ranks(
    pool: RankPool, problem: Path, tmp_path: Path, name: str
) -> None:
    more = ("algorithm.sketch=3",) * name.startswith("sketched ") + PRIVATE * name.startswith(
        "private"
    )
    variant = name.removeprefix("sketched ").removeprefix("private ")
    keys = (*VARIANTS[variant][0], *more, "comm.deterministic=true")
    whole = arguments(problem, tmp_path / "whole", *keys)
    w_whole = pool.run(1, train_and_weights, whole)
    cut = arguments(problem, tmp_path / "cut", *keys)
    pool.run(3, train_and_weights, [*cut, f"run.rounds={ROUNDS // 2}", "run.checkpoint_every=0"])
    w_cut = pool.run(2, train_and_weights, [*cut, "run.resume=auto"])
    np.testing.assert_array_equal(np.concatenate(w_cut), np.concatenate(w_whole))
    numbers = [
        (cobo_dist.open_run(tmp_path / one).summary or {})["numbers"] for one in ("cut", "whole")
    ]
    assert numbers[0] == numbers[1]
    assert ("epsilon" in numbers[0]) == name.startswith("private")
    for one, other in zip(
        models(tmp_path / "cut").values(), models(tmp_path / "whole").values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_pairs_move_with_their_client(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """Clients that change rank take their scores along."""
    keys = (*VARIANTS["all"][0], "comm.deterministic=true", "algorithm.evidence.certainty=0")
    static = pool.run(1, train_and_weights, arguments(problem, tmp_path / "static", *keys))
    moving = arguments(problem, tmp_path / "moving", *keys)
    moved = pool.run(
        2, train_and_weights, [*moving, "comm.placement=adaptive", "comm.placement_every=4"]
    )
    rows = {one.tobytes() for one in np.concatenate(moved)}
    assert rows == {one.tobytes() for one in np.concatenate(static)}
    text = (tmp_path / "moving" / "metrics.jsonl").read_text()
    assert '"event": "placement"' in text or '"event":"placement"' in text, "clients moved"


def test_a_capped_block_of_ones_is_oracle_to_the_last_bit(pool: RankPool, tmp_path: Path) -> None:
    """W = 1 among all clients of one cluster: each round is Oracle's mean."""
    one_cluster = write_quadratic(tmp_path / "one.npz", clusters=1)
    keys = ("comm.deterministic=true", "algorithm.gamma=0", CAPPED, "algorithm.rho=1e9")
    pool.run(2, train_and_weights, arguments(one_cluster, tmp_path / "cobo", *keys))
    oracle = ("algorithm.name=oracle", "comm.deterministic=true")
    given = [
        one for one in arguments(one_cluster, tmp_path / "oracle", *oracle)
        if not one.startswith(("algorithm.rho", "algorithm.gamma", "algorithm.sampling"))
    ]  # fmt: skip
    pool.run(2, train_and_weights, given)
    for one, other in zip(
        models(tmp_path / "cobo").values(), models(tmp_path / "oracle").values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["coupling=capped", "domain=simplex"], "algorithm.coupling=capped is for weights in"),
        (["selection=evidence", "domain=simplex"], "algorithm.selection=evidence is for"),
        (["margin=1", "domain=simplex"], "algorithm.margin=1.0 is for"),
        (["margin=1", "selection=evidence"], "algorithm.margin=1.0 means nothing to"),
        (["threshold=0.1", "selection=evidence"], "algorithm.threshold=0.1 means nothing to"),
        (["margin=-1"], "algorithm.margin"),
        (["margin=.nan"], "algorithm.margin"),
        (["threshold=.inf"], "algorithm.threshold"),
        (["evidence.discount=0"], "algorithm.evidence.discount"),
        (["selection=difference", "domain=simplex"], "algorithm.selection=difference is for"),
        (
            ["selection=difference", "sampling.rate=2"],
            "algorithm.sampling is about pairs of clients that meet",
        ),
        (["selection=difference", "alignment=cosine"], "algorithm.alignment is about"),
        (["selection=difference", "margin=1"], "algorithm.margin=1.0 means nothing to"),
        (["difference.window=1"], "algorithm.difference.window"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(None, [f"algorithm.{key}" for key in keys])


def test_differences_need_noise_of_batches(problem: Path, tmp_path: Path, pool: RankPool) -> None:
    """One example each: every batch is all of a client's data."""
    single = write_quadratic(tmp_path / "single.npz")
    given = arguments(single, tmp_path / "run", "algorithm.difference.window=4")
    with pytest.raises(Exception, match="has all examples of every client"):
        pool.run(1, train_and_weights, given)
