"""Traces rounds with PyTorch's profiler: what each thread and device did, and when."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from cobo_dist.comm.session import Session

SKIPPED_ROUNDS = 10
"""Rounds before the trace: they allocate memory and choose kernels."""


def open_profiler(
    rounds: int, remaining: int, folder: Path, session: Session
) -> AbstractContextManager[profile | None]:
    """Return a profiler of `rounds` of the remaining rounds, to be stepped after each; None if none is left.

    Every rank writes FOLDER/rank_NNNNN.json, which opens in Perfetto.
    """
    if not rounds or remaining <= SKIPPED_ROUNDS:
        return nullcontext()
    path = folder / f"rank_{session.transport.rank:05d}.json"

    def write(profiler: profile) -> None:
        with suppress(OSError):  # a run must not fail for want of a trace
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".part")
            profiler.export_chrome_trace(str(draft))
            draft.replace(path)

    activities = [ProfilerActivity.CPU]
    if session.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    when = schedule(wait=SKIPPED_ROUNDS - 1, warmup=1, active=rounds, repeat=1)
    return profile(activities=activities, schedule=when, on_trace_ready=write)
