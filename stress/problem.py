"""The small run that all parts share, and the comparison of two runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

QUIET = ("log.figures=false", "log.progress=none", "run.device=cpu")
TIME_KEYS = ("seconds",)
RANK_KEYS = ("seconds", "messages", "bytes_")


def write_problem(path: Path, clients: int = 9, size: int = 40) -> Path:
    """Write Example 2 with three clusters."""
    rng = np.random.default_rng(0)
    np.savez(
        path,
        centers=np.repeat(rng.normal(size=(3, size)), -(-clients // 3), axis=0)[:clients],
        curvature=rng.uniform(0.5, 1.5, size=clients),
        start=rng.normal(size=size),
    )
    return path


def arguments(problem: Path, rounds: int, every: int, *more: str) -> list[str]:
    """Return a run of CoBo with momentum and noise, with a checkpoint every so many rounds."""
    return [
        *QUIET, "task.name=quadratic", f"task.file={problem}", "task.noise=0.1", "optimizer.lr=0.05",
        "optimizer.name=ema_momentum", "optimizer.momentum=0.9", "algorithm.sampling.rate=2",
        "algorithm.gamma=0.3", "comm.deterministic=true", f"run.rounds={rounds}", "run.eval_every=10",
        "run.log_weights_every=10", f"run.checkpoint_every={every}", "log.flush_every=3", *more,
    ]  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return all rows of a run's log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def is_done(folder: Path) -> bool:
    """Return whether a run folder says that its run is complete."""
    try:
        return bool(json.loads((folder / "status.json").read_text())["exit_code"] == 0)
    except (OSError, ValueError):
        return False


def differences(
    one: Path,
    other: Path,
    rounds: int,
    but: Sequence[str] = TIME_KEYS,
    leave_out: Sequence[str] = ("traffic",),
) -> list[str]:
    """Return the differences of two finished runs: models and W bit by bit, and every row of the log.

    Events in `leave_out` and keys that begin with one of `but` are not compared. There must be one row for
    each round 1 .. `rounds`, and no evaluation twice.
    """
    found = []
    for name in sorted({path.name for run in (one, other) for path in (run / "models").iterdir()}):
        mine, theirs = (run / "models" / name for run in (one, other))
        if not (mine.exists() and theirs.exists()):
            found.append(f"only one run has the model {name}")
        elif not _same(load_file(mine), load_file(theirs)):
            found.append(f"the model {name} differs")
    with np.load(one / "W.npz") as mine, np.load(other / "W.npz") as theirs:
        if not _same(dict(mine), dict(theirs)):
            found.append("W.npz differs")
    logs = [[row for row in rows(run) if row["event"] not in leave_out] for run in (one, other)]
    for log, run in zip(logs, (one, other), strict=True):
        if [row["round"] for row in log if row["event"] == "round"] != list(range(1, rounds + 1)):
            found.append(f"{run}: not every round has one row")
        evals = [
            (row["round"], row["client"], row["split"]) for row in log if row["event"] == "eval"
        ]
        if len(set(evals)) != len(evals):
            found.append(f"{run}: an evaluation is in the log twice")
    plain = [[_without(row, but) for row in log] for log in logs]
    if plain[0] != plain[1]:
        pairs = zip(*plain, strict=False)
        at = next((k for k, (a, b) in enumerate(pairs) if a != b), min(map(len, plain)))
        found.append(
            f"the logs have {len(plain[0])} and {len(plain[1])} rows and differ in row {at}"
        )
    return found


def _without(row: dict[str, Any], but: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(tuple(but))}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype
        and value.shape == other[name].shape
        and value.tobytes() == other[name].tobytes()
        for name, value in one.items()
    )
