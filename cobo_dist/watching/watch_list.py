"""The run folders to watch: those that were named, and all in a named folder of runs, such as a sweep's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cobo_dist.storage.schema import CONFIG_FILE, METRICS_FILE
from cobo_dist.watching.followed_run import FollowedRun

LAST_RUN_SECONDS = 60.0
"""How long a folder of runs is watched after its last run has ended: a sweep may start another one."""


class WatchList:
    """Follows the run folders of a command line.

    A named folder that is no run, but has folders of runs in it, counts as these; more may appear.
    """

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths, self._clock = list(dict.fromkeys(paths)), clock
        self._followed: dict[Path, FollowedRun] = {}
        self._last_news = clock()

    @property
    def runs(self) -> list[FollowedRun]:
        """The runs, in the order of the command line and by name within a folder of runs."""
        return list(self._followed.values())

    def poll(self) -> bool:
        """Read what is new in all folders; return whether anything is."""
        found = [one for path in self._paths for one in _folders(path)]
        is_new = list(self._followed) != found
        self._followed = {
            path: self._followed.get(path) or FollowedRun(path, self._clock) for path in found
        }
        for run in self.runs:
            is_new = run.poll() or is_new
        if is_new:
            self._last_news = self._clock()
        return is_new

    @property
    def has_ended(self) -> bool:
        """Whether all runs have ended, and none is to be expected in a folder of runs."""
        if not all(run.has_ended for run in self.runs):
            return False
        named_all = set(self._followed) <= set(self._paths)
        return named_all or self._clock() - self._last_news > LAST_RUN_SECONDS


def _folders(path: Path) -> list[Path]:
    """The folder itself if it is a run or may become one, else the folders of runs in it.

    Links in it are not followed: they may lead anywhere.
    """
    if _is_run(path):
        return [path]
    try:
        inside = [one for one in sorted(path.iterdir()) if not one.is_symlink() and _is_run(one)]
    except OSError:
        inside = []
    return inside or [path]


def _is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).exists() or (path / METRICS_FILE).exists()
