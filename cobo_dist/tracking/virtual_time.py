"""What rank 0 logs of virtual time: the seconds of each round, and what clients do in the first ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.participation import Participation, Timing
from cobo_dist.storage.schema import TimelineRow

MAX_ROUNDS, MAX_CLIENTS = 64, 64
"""Rounds, from the first, and clients, from 0, of which it is logged what they do."""


def round_figures(participation: Participation, t: int) -> dict[str, float]:
    """Return the fields of round t that metrics.jsonl has of virtual time; none without it."""
    timing = participation.timing
    if timing is None:
        return {}
    ages_k = timing.staleness(t)[participation.members(t)]
    return {
        "virtual_seconds": timing.at(t).seconds,
        "staleness_mean": float(ages_k.mean()),
        "staleness_max": int(ages_k.max()),
    }


def timeline_row(
    timing: Timing | None, t: int, met_m2: NDArray[np.int64] | None
) -> TimelineRow | None:
    """Return what each client does in round t; None for a later round, or without virtual time."""
    if timing is None or t >= MAX_ROUNDS:
        return None
    moment = timing.at(t)
    shown_m2 = np.empty((0, 2), np.int64) if met_m2 is None else met_m2
    shown_m2 = shown_m2[(shown_m2 < MAX_CLIENTS).all(axis=1)]

    def ids(mask_n: NDArray[np.bool_]) -> list[int]:
        return [int(i) for i in np.flatnonzero(mask_n[:MAX_CLIENTS])]

    return TimelineRow(
        round=t + 1,
        virtual_seconds=moment.seconds,
        begins=ids(moment.begins_n),
        acts=ids(moment.acts_n),
        work=[float(moment.work_n[i]) for i in ids(moment.acts_n)],
        waits=ids(moment.waits_n),
        met=[[int(i), int(j)] for i, j in shown_m2],
    )
