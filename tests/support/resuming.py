"""Stopping a run by a signal, and comparing it with one that was never stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from problems import models, train

from cobo_dist.comm.session import Session
from cobo_dist.tracking.metrics_buffer import MetricsBuffer


def stopped(session: Session, arguments: list[str], rank: int, r: int, number: int) -> int:
    """Train; one rank gets a signal in round r."""
    keep = MetricsBuffer.round

    def round_with_signal(self: MetricsBuffer, now: int, *rest: Any) -> None:
        keep(self, now, *rest)
        if now == r and session.transport.rank == rank:
            os.kill(os.getpid(), number)

    with mock.patch.object(MetricsBuffer, "round", round_with_signal):
        return train(session, arguments)


def log(folder: Path) -> list[dict[str, Any]]:
    """Return all rows but the last, without what time and the number of ranks change."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [
        {k: v for k, v in row.items() if k != "seconds" and not k.startswith(("bytes", "messages"))}
        for row in found
        if row["event"] != "traffic"
    ]


def assert_same(one: Path, other: Path) -> None:
    """Compare models, W and rows, bit by bit."""
    mine, theirs = models(one), models(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert np.array_equal(value, theirs[name]), name
    a, b = np.load(one / "W.npz"), np.load(other / "W.npz")
    assert np.array_equal(a["rounds"], b["rounds"])
    assert np.array_equal(a["weights"], b["weights"])
    assert log(one) == log(other)
