"""Traces rounds with PyTorch's profiler: what each thread and device did, and when."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress

from torch.profiler import ProfilerActivity, profile, schedule

from cobo_dist.comm.session import Session
from cobo_dist.storage.owner import TakenOver
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import TRACES_DIR

SKIPPED_ROUNDS = 10
"""Rounds before the trace: they allocate memory and choose kernels."""


def open_profiler(
    rounds: int, remaining: int, folder: RunDir, session: Session
) -> AbstractContextManager[profile | None]:
    """Return a profiler of `rounds` of the remaining rounds, to be stepped after each; None if none is left.

    Every rank writes profile/rank_NNNNN.json in the run folder, which opens in Perfetto.
    """
    if not rounds or remaining <= SKIPPED_ROUNDS:
        return nullcontext()
    path = folder.path / TRACES_DIR / f"rank_{session.transport.rank:05d}.json"

    def write(profiler: profile) -> None:
        with suppress(OSError, TakenOver):  # a run must not fail for want of a trace
            folder.check_owner()
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{folder.epoch}.part")
            profiler.export_chrome_trace(str(draft))
            folder.publish(draft, path)

    activities = [ProfilerActivity.CPU]
    if session.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    when = schedule(wait=SKIPPED_ROUNDS - 1, warmup=1, active=rounds, repeat=1)
    return profile(activities=activities, schedule=when, on_trace_ready=write)
