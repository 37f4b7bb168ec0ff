"""The page of a report for runs that go on, and what is new on it since a browser last asked."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from cobo_dist.errors import ConfigError
from cobo_dist.reports.grouping import group_runs
from cobo_dist.reports.page import Live, Section, encode, render_page, render_tables
from cobo_dist.reports.page.render import MAX_EXPLORER_BYTES
from cobo_dist.reports.report import Report
from cobo_dist.reports.tables.table import Table
from cobo_dist.watching.followed_run import FollowedRun
from cobo_dist.watching.terminal_view import duration, one_line
from cobo_dist.watching.watch_list import WatchList

DATA = "data.json"
"""Where the page asks for news."""
MIN_SECONDS = 1.0
"""How long what was read is good for."""
MAX_SHARE = 0.25
"""The most of a processor's time that goes into reading and preparing, when there is always news."""
_MAX_WARNINGS = 10
_TITLE = "Watching runs"

Json = dict[str, Any]


class LivePage:
    """What the server answers. It reads the runs when it is asked, and one request at a time does so.

    `version` counts what has changed; each part of the page knows the version of its last change.
    """

    def __init__(self, watched: WatchList, clock: Callable[[], float] = time.monotonic) -> None:
        self._watched, self._clock = watched, clock
        self._lock = threading.Lock()
        # Browsers that were open when a server of the same port ended count its versions.
        self.version = time.time_ns() // 1_000_000
        self._parts: dict[str, tuple[int, Any, str]] = {}  # version, content, what tells a change
        self._sections: list[Section] = []
        self._next = clock()

    def page(self) -> str:
        """Return the whole page as it is now."""
        with self._lock:
            self._refresh()
            live = Live(DATA, self._layout(), self._parts["runs"][1])
            return render_page(_TITLE, self._sections, live)

    def news(self, since: int) -> str | None:
        """Return the parts that have changed after a version, as JSON; None if none has."""
        with self._lock:
            self._refresh()
            if since == self.version:
                return None
            changed = {
                name: content
                for name, (version, content, _) in self._parts.items()
                if version > since or since > self.version
            }
            explorers = {name: one for name, one in changed.items() if not isinstance(one, str)}
            news = {
                "version": self.version,
                "layout": self._layout(),
                "fragments": {name: one for name, one in changed.items() if isinstance(one, str)},
                "explorers": explorers,
            }
            return json.dumps(news, separators=(",", ":"), allow_nan=False)

    def _layout(self) -> str:
        """What names the sections and their explorers."""
        names = [(one.title, one.explorer and one.explorer.name) for one in self._sections]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]

    def _refresh(self) -> None:
        if self._clock() < self._next:
            return
        started = time.thread_time()
        if self._watched.poll() or not self._parts:
            self._prepare()
        spent = time.thread_time() - started
        self._next = self._clock() + max(MIN_SECONDS, spent / MAX_SHARE - spent)

    def _prepare(self) -> None:
        runs = self._watched.runs
        notes: list[str] = []
        try:
            problems, notes = group_runs(one.run for one in runs if one.run is not None)
            self._sections = Report(problems).sections() if problems else []
        except ConfigError as error:
            notes = [str(error)]
        parts: dict[str, Any] = {"runs": render_tables(status_section(runs, notes))}
        explorers = [one.explorer for one in self._sections if one.explorer]
        for number, section in enumerate(self._sections, start=1):
            parts[f"tables-{number}"] = render_tables(section)
            if section.explorer:
                limit = MAX_EXPLORER_BYTES // len(explorers)
                parts[section.explorer.name] = section.explorer.data(limit)
        self._take(parts)

    def _take(self, parts: Json) -> None:
        """Keep the parts; those that have changed get a new version."""
        told = {name: one if isinstance(one, str) else encode(one) for name, one in parts.items()}
        same = {name for name in told if name in self._parts and self._parts[name][2] == told[name]}
        if len(same) < len(told) or len(told) < len(self._parts):
            self.version += 1
        self._parts = {
            name: self._parts[name] if name in same else (self.version, one, told[name])
            for name, one in parts.items()
        }


def status_section(runs: Sequence[FollowedRun], notes: Sequence[str] = ()) -> Section:
    """Return the section that says how the runs stand, with their last warnings."""
    rows = []
    for run in runs:
        name, series = run.metric
        rate = run.seconds_per_round
        score = f"{name} {series[max(series)]:.4g}" if series else "-"
        rows.append(
            {
                "run": one_line(run.title),
                "state": run.state,
                "round": str(run.round) if run.run is not None else "-",
                "of": str(run.rounds or "-"),
                "s a round": "-" if rate is None else f"{rate:.3g}",
                "left": duration(run.seconds_left),
                "training loss": f"{run.loss[max(run.loss)]:.4g}" if run.loss else "-",
                "last evaluation": score,
            }
        )
    said = [f"{run.title}: {run.state}: {run.words}" for run in runs if run.words]
    for run in runs:
        warnings = run.warnings[-_MAX_WARNINGS:]
        said += [f"{run.title}, round {row.round}: {row.message}" for row in warnings]
    table = Table(caption="Runs", text=pd.DataFrame(rows), left=2)
    return Section("Runs", [table], [*map(one_line, said), *notes])
