"""Marks the rounds in which clients join, leave or change cluster in figures over rounds."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from cobo_dist.reports.figures.style import DARK_GREY
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.look import points
from cobo_dist.reports.metrics import problem_switches

_MAX_LABELS = 12
"""Rounds with a label; with more they would cover one another."""
_MAX_NAMED = 3  # clients of a label
_MAX_MARKED_SWITCHES = 12  # that have a line each


def mark_events(axes: Axes, groups: Sequence[Group], labels_at: float | None = 1.0) -> None:
    """Draw a thin line in each round in which a client joins (+) or leaves (-), with the clients' ids.

    Rounds in which clients change cluster have a dashed line.

    Where runs differ, those of the run with most events. Many events are short ticks without a label.
    `labels_at`: 1 for labels at the top of the axes, 0 at the bottom; None: without.
    """
    mark_switches(axes, problem_switches(groups))
    runs = [run for group in groups for run in group.runs]
    events = max((run.events for run in runs), key=len, default=())
    names: dict[int, list[str]] = {}
    for r, client, joins in events:
        names.setdefault(r, []).append(("+" if joins else "\u2212") + str(client))
    few = len(names) <= _MAX_LABELS
    for r, found in names.items():
        axes.axvline(r, 0.0 if few else 0.97, color=DARK_GREY, linewidth=0.5, zorder=1.5)
        if few and labels_at is not None:
            label = " ".join(found[:_MAX_NAMED]) + (" \u2026" if len(found) > _MAX_NAMED else "")
            axes.annotate(
                label, (r, labels_at), xycoords=axes.get_xaxis_transform(),
                xytext=(1.0, 1.0 - 2.0 * labels_at), textcoords="offset points", rotation=90,
                fontsize=points(5), color=DARK_GREY, ha="left", va="top" if labels_at else "bottom",
                annotation_clip=True,
            )  # fmt: skip


def mark_switches(axes: Axes, rounds: Sequence[int]) -> None:
    """Mark the rounds before which clients change cluster: a thin line for each, or a band around many."""
    few = rounds if len(rounds) <= _MAX_MARKED_SWITCHES else (rounds[0], rounds[-1])
    for number in few:
        axes.axvline(number, color=DARK_GREY, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1.5)
    if len(few) < len(rounds):
        axes.axvspan(few[0], few[1], color=DARK_GREY, alpha=0.08, linewidth=0, zorder=0.5)
