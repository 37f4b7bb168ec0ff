"""Runs of method x rate x seed that benchmarks compare: each is trained once, rates by validation."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Protocol, TypeVar

import torch

import cobo_dist
from cobo_dist.config import Config
from cobo_dist.errors import EXIT_STOPPED, ConfigError, RunFailure
from cobo_dist.tasks.registry import build_task

COMMON = (
    "run.threads=1", "run.eval_splits=[validation,test]", "run.log_weights_every=0",
    "run.checkpoint_every=0", "log.figures=false", "log.progress=none",
)  # fmt: skip


class Validated(Protocol):
    """A run that was evaluated on validation data."""

    @property
    def validation(self) -> float:
        """The accuracy at the end."""


R = TypeVar("R", bound=Validated)


def try_data(config: Config) -> None:
    """Read a task's data once, before any run: each method would refuse them in the same words.

    Raises:
        ConfigError: they cannot be read.
    """
    build_task(config.task, config.model, config.data, config.run.seed, torch.float32)


def with_best_rate(
    rates: Sequence[float], seeds: Sequence[int], tuning: int, run: Callable[[float, int], R]
) -> Iterator[R]:
    """Yield the runs with the best learning rate, one for each seed.

    The best rate has the highest validation accuracy, on average over the first `tuning` seeds. A rate with
    which a run fails or is refused is passed over.

    Raises:
        ConfigError, RunFailure: no rate works, or the best one fails with a later seed.
    """
    tried, by_rate = seeds[:tuning], {}
    failure: ConfigError | RunFailure | None = None
    for rate in rates:
        try:
            by_rate[rate] = [run(rate, seed) for seed in tried]
        except (ConfigError, RunFailure) as error:
            failure = error
    if failure and not by_rate:
        raise failure
    best = max(by_rate, key=lambda rate: fmean(one.validation for one in by_rate[rate]))
    yield from by_rate[best]
    for seed in seeds[tuning:]:
        yield run(best, seed)


def train_once(
    config: str | None, settings: Sequence[str], rounds: int, stem: Path, rate: float, seed: int
) -> Path:
    """Return the folder of a run, STEM_lrRATE_sSEED; it is trained unless it is there with as many rounds.

    Raises:
        ConfigError: the run is refused.
        RunFailure: it fails.
        SystemExit: a signal stopped it, and so ends the benchmark.
    """
    path = stem.with_name(f"{stem.name}_lr{rate:g}_s{seed}")
    if _rounds_of(path) != rounds:
        given = [
            *settings, f"run.rounds={rounds}", f"optimizer.lr={rate:g}", f"run.seed={seed}",
            f"run.dir={path}", "run.overwrite=true",
        ]  # fmt: skip
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                cobo_dist.fit(config, given)
        except RunFailure as error:
            if error.code == EXIT_STOPPED:
                raise SystemExit(EXIT_STOPPED) from error
            raise
        finally:
            # A run's objects refer to each other in cycles, which would keep its data for many more runs.
            gc.collect()
    return path


def _rounds_of(path: Path) -> int:
    """Return the rounds of a finished run; 0 if there is none."""
    summary = cobo_dist.open_run(path).summary if path.exists() else None
    return int(summary["rounds"]) if summary else 0
