"""A trace of some rounds, from PyTorch's profiler: what each thread and device did, and when."""

from __future__ import annotations

from contextlib import suppress

from torch.profiler import ProfilerActivity, profile

from cobo_dist.comm.session import Session
from cobo_dist.storage.run_dir import RunDir

WARM_UP = 10
"""Rounds before the trace: the first ones allocate, and tune themselves."""


class Profiler:
    """Traces `count` rounds on every rank, after the first `WARM_UP`; 0 traces none."""

    def __init__(self, count: int, first: int, last: int, folder: RunDir, session: Session) -> None:
        """Trace into profile/rank_NNNNN.json of the run folder, of a run of rounds first + 1 to last."""
        self._begins, self._ends = first + WARM_UP + 1, min(first + WARM_UP + count, last)
        self._path = folder.path / "profile" / f"rank_{session.transport.rank:05d}.json"
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
        with suppress(OSError):  # no trace is a reason to lose a run
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(".part")
            self._profile.export_chrome_trace(str(draft))
            draft.replace(self._path)
        self._profile = None
