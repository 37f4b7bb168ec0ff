"""Traces rounds with PyTorch's profiler: what each thread and device did, and when."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from cobo_dist.comm.session import Session

WARM_UP_ROUNDS = 10
"""Rounds that run before the trace: they allocate memory and choose kernels."""


class Profiler:
    """Traces `count` rounds on every rank, after the first `WARM_UP_ROUNDS`; 0 traces none."""

    def __init__(self, count: int, first: int, last: int, folder: Path, session: Session) -> None:
        """Trace into profile/rank_NNNNN.json of the run folder, of a run of rounds first + 1 to last."""
        self._begins, self._ends = (
            first + WARM_UP_ROUNDS + 1,
            min(first + WARM_UP_ROUNDS + count, last),
        )
        self._path = folder / "profile" / f"rank_{session.transport.rank:05d}.json"
        self._activities = [ProfilerActivity.CPU]
        if session.device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._profile: profile | None = None

    def begin(self, r: int) -> None:
        """Start where round r is the first to trace."""
        if r == self._begins <= self._ends:
            self._profile = profile(activities=self._activities)
            self._profile.start()

    def end(self, r: int) -> None:
        """Write the file where round r was the last to trace."""
        if self._profile is None or r < self._ends:
            return
        self._profile.stop()
        with suppress(OSError):  # a run must not fail for want of a trace
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(".part")
            self._profile.export_chrome_trace(str(draft))
            draft.replace(self._path)
        self._profile = None
