"""Columns by the names of parameters: found, taken and written back; only they travel and are counted.

The example of docs/EXTENDING.md, `examples/own_similarity.py`, shares its body by `gram` and `mix`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import models, rows, train, write_quadratic

from cobo_dist.clients.columns import find_columns
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.maths.flat import Layout, empty_rows
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.tasks.registry import build_task
from cobo_dist.train import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_similarity.py"
N, BODY, HEAD = 8, ("1.weight", "1.bias"), ("3.weight", "3.bias")
BODY_SIZE = 18 * 64 + 18
SMALL = [
    f"plugins={EXAMPLE}", "algorithm.name=similar_bodies", "algorithm.head=3", "model.hidden=[18]",
    "run.eval_every=0", "run.threads=1", "run.engine=one_by_one", "log.figures=false",
    "log.progress=none",
]  # fmt: skip

LAYOUT = Layout.of(
    [
        (name, torch.zeros(shape))
        for name, shape in {
            "h.0.attn.lora_A.default.weight": (2, 3), "h.0.attn.lora_B.default.weight": (3, 2),
            "h.1.attn.lora_A.default.weight": (2, 3), "h.1.attn.lora_B.default.weight": (3, 2),
            "head.weight": (4, 3), "head.bias": (4,), "header": (1,),
        }.items()
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "others", "runs"),
    [
        (["*lora_B*"], False, [(6, 12), (18, 24)]),
        (["*lora_B*"], True, [(0, 6), (12, 18), (24, 41)]),
        (["head"], False, [(24, 40)]),
        (["head.bias", "header"], False, [(36, 41)]),
        (["h.1", "h.0.attn.lora_B"], False, [(6, 24)]),
        (["*"], False, [(0, 41)]),
    ],
)
def test_columns_by_globs_and_names(
    patterns: list[str], others: bool, runs: list[tuple[int, int]]
) -> None:
    columns = find_columns(LAYOUT, patterns, others=others)
    assert [(run.start, run.stop) for run in columns.runs] == runs
    x_cd = empty_rows(3, 41, dtype=torch.float32).copy_(torch.arange(123.0).view(3, 41))
    before, index = x_cd.clone(), [k for start, stop in runs for k in range(start, stop)]
    part_ck = columns.take(x_cd)
    assert torch.equal(part_ck, before[:, index])
    part_ck.neg_()
    columns.put(part_ck, x_cd)
    before[:, index] *= -1
    assert torch.equal(x_cd, before)
    columns.put(torch.ones(3, columns.size), x_cd)  # also what is no view
    before[:, index] = 1
    assert torch.equal(x_cd, before)
    columns.fill(x_cd, 0.5)
    before[:, index] = 0.5
    assert torch.equal(x_cd, before)


@pytest.mark.parametrize(
    ("patterns", "others", "words"),
    [
        (["haed"], False, "no parameter is called 'haed'; near are: head"),
        (["head", "*lora_b*"], False, r"called '\*lora_b\*'; near are: .*lora_B"),
        (["bias"], False, "no parameter is called 'bias'"),
        (["*"], True, r"'\*' leaves no parameter of 7"),
    ],
)
def test_names_that_match_nothing(patterns: list[str], others: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        find_columns(LAYOUT, patterns, others=others)
    assert "\n" not in str(caught.value)


def test_a_model_without_such_tensors() -> None:
    with pytest.raises(ConfigError, match="none: the model has no such tensors"):
        find_columns(Layout.of([]), ["*.running_mean"])


# -- the example ---------------------------------------------------------------------------------------


def stacked(folder: Path, names: tuple[str, ...]) -> np.ndarray:
    """Return some parameters of all clients, [n, k]."""
    found = models(folder)
    clients = sorted({key.split("/")[0] for key in found})
    return np.stack(
        [np.concatenate([found[f"{one}/{name}"].ravel() for name in names]) for one in clients]
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_example_equals_a_dense_one(pool: RankPool, tmp_path: Path, ranks: int) -> None:
    """Models after one local step are those of `local`; then bodies are mixed, and heads stay."""
    one = [*SMALL, "run.rounds=1", "run.dtype=float64"]
    alone = [key for key in one if not key.startswith("algorithm.")]
    pool.run(1, train, [*alone, "algorithm.name=local", f"run.dir={tmp_path / 'local'}"])
    pool.run(ranks, train, [*one, "algorithm.sharpness=3000", f"run.dir={tmp_path / 'run'}"])
    body = stacked(tmp_path / "local", BODY)
    norms = np.linalg.norm(body, axis=1)
    w = np.exp(3000 * (body @ body.T / np.outer(norms, norms) - 1.0))
    w /= w.sum(axis=1, keepdims=True)
    assert w.std() > 0.02, "a problem in which weights differ"
    np.testing.assert_allclose(stacked(tmp_path / "run", BODY), w @ body, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(
        stacked(tmp_path / "run", HEAD), stacked(tmp_path / "local", HEAD)
    )
    np.testing.assert_allclose(np.load(tmp_path / "run/W.npz")["weights"][-1], w, atol=1e-6)


def test_only_the_columns_travel_as_planned(pool: RankPool, tmp_path: Path) -> None:
    """Equal weights, as in the plan: each of 6 ordered pairs of ranks mixes by one body."""
    settings = [*SMALL, "run.rounds=2", "algorithm.sharpness=0"]
    pool.run(3, train, [*settings, f"run.dir={tmp_path / 'run'}"])
    config = load_config(None, settings)
    task = build_task(config.task, config.model, config.data, 0, torch.float32)
    dry_run = DryRun(config, task, 3)
    for row in rows(tmp_path / "run", "round"):
        sent = dry_run.round(row["round"])
        assert (sent.total, sum(sent.messages.values())) == (row["bytes_sent"], row["messages"])
    blocks = sum(a * b for a in (3, 3, 2) for b in (3, 3, 2)) - 3 * 3 - 3 * 3 - 2 * 2
    numbers = N * 2  # of W's diagonal, which `all_gather` brings to two other ranks
    gram = N * BODY_SIZE * 4 * 2 / 3 + 2 * N * N * 8
    mixed = 6 * BODY_SIZE * 4 + blocks * 4
    # Columns of a rank end on 64-byte boundaries, so thirds are not exact.
    assert sent.total == pytest.approx(gram + mixed + 2 * numbers * 8, rel=0.01)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("4", "no parameter is called '4'"),
        ("fc", "near are: 1.weight"),
        ("*", "leaves no parameter"),
    ],
)
def test_a_head_that_the_model_lacks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str, words: str
) -> None:
    code = main([*SMALL, f"algorithm.head='{head}'", f"run.dir={tmp_path / 'run'}", "run.rounds=1"])
    said = capsys.readouterr().err
    assert code == 2, said
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_a_task_with_one_parameter_has_no_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = write_quadratic(tmp_path / "problem.npz")
    given = [*SMALL, "task.name=quadratic", f"task.file={problem}", "algorithm.head=x"]
    given = [one for one in given if not one.startswith("model.")]
    assert main([*given, f"run.dir={tmp_path / 'run'}", "run.rounds=1"]) == 2
    assert "'x' leaves no parameter of 1" in capsys.readouterr().err
