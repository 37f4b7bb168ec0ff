"""Runs whose ranks go at their own pace: what they learn, log, save and refuse."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from pool import RankPool
from problems import models, rows, train, write_quadratic
from resuming import stopped

from cobo_dist.cli.train import main
from cobo_dist.comm.session import Session
from cobo_dist.config import load_config
from cobo_dist.errors import EXIT_DONE, EXIT_STOPPED, ConfigError
from cobo_dist.tracking.metrics_buffer import MetricsBuffer


def quadratic(folder: Path, *more: str) -> list[str]:
    """Return a run of 7 clients in 3 clusters, whose W and models settle."""
    problem = write_quadratic(folder / "problem.npz")
    return [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", "optimizer.lr=0.1",
        "algorithm.gamma=0.5", "algorithm.rho=0.5", "algorithm.sampling.rate=1.0", "run.rounds=400",
        "run.eval_every=100", "run.log_weights_every=100", "log.flush_every=50", *more,
    ]  # fmt: skip


def slowed(session: Session, arguments: list[str], rank: int, seconds: float) -> int:
    """Train; one rank takes so many seconds more for each round."""
    keep = MetricsBuffer.round

    def round_after_a_rest(self: MetricsBuffer, *given: Any) -> None:
        keep(self, *given)
        if session.transport.rank == rank:
            time.sleep(seconds)

    with mock.patch.object(MetricsBuffer, "round", round_after_a_rest):
        return train(session, arguments)


def last_weights(folder: Path) -> np.ndarray:
    found: np.ndarray = np.load(folder / "W.npz")["weights"][-1]
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_they_learn_what_ranks_learn_together(pool: RankPool, tmp_path: Path, ranks: int) -> None:
    run = [*quadratic(tmp_path), "algorithm.coupling=capped"]
    together, apart = tmp_path / "together", tmp_path / "apart"
    pool.run(ranks, train, [*run, f"run.dir={together}"])
    codes = pool.run(
        ranks, train, [*run, "comm.mode=asynchronous", "comm.max_lag=1000", f"run.dir={apart}"]
    )
    assert codes == [EXIT_DONE] * ranks
    w_nn = last_weights(apart)
    np.testing.assert_array_equal(w_nn, w_nn.T)
    np.testing.assert_allclose(w_nn, last_weights(together), atol=1e-9)
    expected, found = models(together), models(apart)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-3, err_msg=name)
    # Nothing was left out: every rank took every round.
    assert [row["round"] for row in rows(apart, "round")] == list(range(1, 401))
    assert {row["clients"] for row in rows(apart, "round")} == {7}
    evaluated = [row["round"] for row in rows(apart, "eval") if row["client"] is None]
    assert evaluated == [0, 100, 200, 300, 400]


def test_one_rank_alone_computes_what_it_computes_in_step(pool: RankPool, tmp_path: Path) -> None:
    run = [*quadratic(tmp_path), "run.rounds=30"]
    pool.run(1, train, [*run, f"run.dir={tmp_path / 'a'}"])
    pool.run(1, train, [*run, "comm.mode=asynchronous", f"run.dir={tmp_path / 'b'}"])
    np.testing.assert_allclose(
        last_weights(tmp_path / "b"), last_weights(tmp_path / "a"), rtol=1e-12
    )
    for name, value in models(tmp_path / "a").items():
        np.testing.assert_allclose(models(tmp_path / "b")[name], value, rtol=1e-10)


def test_a_slow_rank_leaves_out_rounds_and_logs_those_that_are_due(
    pool: RankPool, tmp_path: Path
) -> None:
    run = [*quadratic(tmp_path), "comm.mode=asynchronous", "comm.max_lag=5"]
    codes = pool.run(2, slowed, [*run, f"run.dir={tmp_path / 'run'}"], 1, 0.03)
    assert codes == [EXIT_DONE] * 2
    found = rows(tmp_path / "run", "round")
    assert [row["round"] for row in found] == list(range(1, 401)), "the fast rank took all rounds"
    whole = [row["round"] for row in found if row["clients"] == 7]
    assert set(range(50, 401, 50)) <= set(whole), "in these something is due"
    assert len(whole) < 200, f"the slow rank took {len(whole)} of 400 rounds"
    assert max(row["staleness_max"] for row in found) >= 5
    for row in found:
        assert np.isfinite(row["loss"])
    w_nn = last_weights(tmp_path / "run")
    np.testing.assert_array_equal(w_nn, w_nn.T)
    evaluated = [row for row in rows(tmp_path / "run", "eval") if row["client"] is not None]
    assert len(evaluated) == 5 * 7, "each client in rounds 0, 100, ..., 400"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_stops_all_in_one_state_and_they_go_on(
    pool: RankPool, tmp_path: Path, rank: int
) -> None:
    run = [*quadratic(tmp_path), "comm.mode=asynchronous", f"run.dir={tmp_path / 'run'}"]
    codes = pool.run(2, stopped, run, rank, 130, signal.SIGUSR1)
    assert codes == [EXIT_STOPPED] * 2
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    at = int(saved.name.split("-")[-1])
    assert 130 <= at < 400
    assert max(row["round"] for row in rows(tmp_path / "run", "round")) == at
    assert pool.run(2, train, [*run, "run.resume=auto"]) == [EXIT_DONE] * 2
    assert [row["round"] for row in rows(tmp_path / "run", "round")] == list(range(1, 401))


def test_a_checkpoint_is_one_state_on_any_number_of_ranks(pool: RankPool, tmp_path: Path) -> None:
    run = [*quadratic(tmp_path), "run.checkpoint_every=150", f"run.dir={tmp_path / 'run'}"]
    assert pool.run(3, stopped, [*run, "comm.mode=asynchronous"], 2, 301, signal.SIGTERM)
    names = sorted(one.name for one in (tmp_path / "run" / "checkpoints").iterdir())
    assert any(name.endswith("300") for name in names), names
    again = [*run, "comm.mode=asynchronous", "comm.max_lag=7", "run.resume=auto"]
    assert pool.run(2, train, again) == [EXIT_DONE] * 2


@pytest.mark.parametrize(
    "more",
    [
        ("algorithm.selection=evidence", "algorithm.coupling=capped", "algorithm.start=zeros"),
        ("algorithm.domain=simplex",),
        ("algorithm.sketch=3", "algorithm.alignment=cosine"),
        ("algorithm.order=models_first", "algorithm.margin=1"),
    ],
    ids=["evidence", "simplex", "sketch", "models first"],
)
def test_variants_of_cobo(pool: RankPool, tmp_path: Path, more: tuple[str, ...]) -> None:
    run = [*quadratic(tmp_path, *more), "run.rounds=100", "comm.mode=asynchronous"]
    assert pool.run(2, train, [*run, f"run.dir={tmp_path / 'run'}"]) == [EXIT_DONE] * 2
    assert np.isfinite(last_weights(tmp_path / "run")).all()
    assert sum(row["pairs"] for row in rows(tmp_path / "run", "round")) > 50


@pytest.mark.parametrize("name", ["local", "swift"])
def test_other_methods(pool: RankPool, tmp_path: Path, name: str) -> None:
    problem = write_quadratic(tmp_path / "problem.npz")
    run = [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", "optimizer.lr=0.1",
        "run.rounds=60", f"algorithm.name={name}", "comm.mode=asynchronous",
    ]  # fmt: skip
    assert pool.run(3, train, [*run, f"run.dir={tmp_path / 'run'}"]) == [EXIT_DONE] * 3
    losses = [row["loss"] for row in rows(tmp_path / "run", "round")]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("algorithm.name=fedavg",), "needs all ranks in a round; take one of local, cobo, swift"),
        (("preset=robust",), "needs all ranks in a round"),
        (("participation.fraction=0.5",), "participation says who takes part in which round"),
        (("membership.joins=2",), "membership says who takes part in which round"),
        (("clock=virtual",), "clock says who takes part in which round"),
        (("comm.deterministic=true",), "comm.deterministic=true promises the same bits"),
        (("comm.check=true",), "comm.check=true compares what all ranks do"),
        (("comm.placement=adaptive",), "comm.placement=adaptive moves clients"),
    ],
)
def test_what_does_not_go_with_it_is_refused(more: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(None, ["comm.mode=asynchronous", *more])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_callbacks_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [
        "comm.mode=asynchronous",
        "callbacks=[{name: early_stopping}]",
        f"run.dir={tmp_path / 'run'}",
    ]
    assert main(run) == 2
    assert "callbacks see every round of all ranks at once" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_lag_needs_the_mode() -> None:
    with pytest.raises(ConfigError, match=r"comm\.max_lag=3 has no effect"):
        load_config(None, ["comm.max_lag=3"])


def test_over_mpi(mpi_pool: RankPool, tmp_path: Path) -> None:
    run = [*quadratic(tmp_path), "comm.mode=asynchronous", f"run.dir={tmp_path / 'run'}"]
    assert mpi_pool.run(2, train, run) == [EXIT_DONE] * 2
    w_nn = last_weights(tmp_path / "run")
    np.testing.assert_array_equal(w_nn, w_nn.T)
    assert mpi_pool.run(2, stopped, [*run, "run.overwrite=true"], 1, 60, signal.SIGTERM) == [
        EXIT_STOPPED,
        EXIT_STOPPED,
    ]
