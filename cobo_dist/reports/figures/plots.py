"""The figures of one run, for Python code and notebooks: a Figure each, or drawn into given axes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cobo_dist.errors import ConfigError
from cobo_dist.reports.figures import client_map, stability
from cobo_dist.reports.figures.events import mark_events
from cobo_dist.reports.figures.network import network_size, plot_network
from cobo_dist.reports.figures.seriated import MAX_LEAVES, plot_seriated, seriated_size
from cobo_dist.reports.figures.style import METRIC_LABELS, canvas, client_style, round_axis
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.metrics import mean_over_clients, percent, problem_metric, problem_split
from cobo_dist.reports.reading import Run
from cobo_dist.reports.reading.graph import Graph

KINDS = ("models", "weights")
"""What a map of clients can be of."""
_CURVES_SIZE = (3.6, 2.6)


@contextmanager
def _axes(size: tuple[float, float], ax: Axes | None) -> Iterator[tuple[Axes, Figure]]:
    """Give the axes to draw into, in the style of reports: those of the caller, or of a new figure."""
    with canvas(*size) as figure:
        if ax is None:
            yield figure.add_subplot(), _shown(figure)
        else:
            found = ax.get_figure(root=True)
            assert found is not None
            yield ax, found


class _NotebookFigure(Figure):
    """A figure that a notebook shows, also where it has not imported pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=144, bbox_inches="tight")
        return file.getvalue()


def _shown(figure: Figure) -> Figure:
    figure.__class__ = _NotebookFigure
    return figure


def plot_weights(graph: Graph, ax: Axes | None = None) -> Figure:
    """Draw W in a seriated order, with its tree.

    Raises:
        ConfigError: there is no graph, or one of too many clients.
    """
    _check(graph)
    if len(graph.members) > MAX_LEAVES:
        raise ConfigError(
            f"W of {len(graph.members)} clients has no tree that can be read, at most {MAX_LEAVES} have; "
            "see weights.png of `python -m cobo_dist.report`"
        )
    with _axes(seriated_size(graph), ax) as (axes, figure):
        plot_seriated(axes, graph)
        return figure


def plot_graph(graph: Graph, ax: Axes | None = None) -> Figure:
    """Draw the graph as a network.

    Raises:
        ConfigError: there is no graph.
    """
    _check(graph)
    with _axes(network_size(graph), ax) as (axes, figure):
        plot_network(axes, graph)
        return figure


def plot_map(folder: Path, graph: Graph, of: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw the clients in the plane: by their `models`, by `weights`, or (None) by both that there are.

    Raises:
        ConfigError: `of` is another word, or there is none that can be drawn; the message says why.
    """
    if of not in (None, *KINDS):
        raise ConfigError(f"of={of!r} is no map; take one of {', '.join(KINDS)}")
    kinds = KINDS if of is None else (of,)
    panels, reasons = [], []
    for kind in kinds:
        try:
            panels.append(_panel(kind, folder, graph))
        except ConfigError as reason:
            reasons.append(str(reason))
    if not panels:
        raise ConfigError("; ".join(reasons))
    if ax is not None or len(panels) == 1:
        with _axes(client_map.map_size(panels[:1]), ax) as (axes, figure):
            client_map.plot_map(axes, panels[0])
            return figure
    with canvas(*client_map.map_size(panels)) as figure:
        for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
            client_map.plot_map(axes, panel)
            if panel is not panels[-1] and (legend := axes.get_legend()) is not None:
                legend.remove()
        return _shown(figure)


def _panel(kind: str, folder: Path, graph: Graph) -> client_map.Panel:
    if kind == "models":
        return client_map.map_of_models(folder, graph)
    return client_map.map_of_weights(graph)


def plot_stability(run: Run, ax: Axes | None = None) -> Figure:
    """Draw what changes from one snapshot of W to the next.

    Raises:
        ConfigError: there are fewer than two snapshots.
    """
    group = Group(run.algorithm, (run,), {})
    curves = stability.stability_curves(group)
    if not curves.keys() - {"rand_truth"}:
        raise ConfigError(
            f"{run.path} has fewer than two snapshots of W of two clients; set run.log_weights_every"
        )
    with _axes(stability.SIZE, ax) as (axes, figure):
        stability.plot_stability(axes, curves)
        mark_events(axes, [group])
        return figure


def plot_curves(
    run: Run, metric: str | None = None, split: str | None = None, ax: Axes | None = None
) -> Figure:
    """Draw a metric over the rounds: each client thin, their mean in bold.

    None: the metric of the problem (accuracy, perplexity, loss); the split that was tested.

    Raises:
        ConfigError: it was not evaluated; the message names what was.
    """
    group = Group(run.algorithm, (run,), {})
    metric = metric or problem_metric([group])
    split = split or problem_split([group])
    clients = run.evals.get((split, metric))
    if not clients:
        known = ", ".join(f"{one}/{other}" for one, other in sorted(run.evals)) or "nothing yet"
        raise ConfigError(f"{run.path} has no {split}/{metric}; it has {known}")
    with _axes(_CURVES_SIZE, ax) as (axes, figure):
        label = "a client"
        for client, series in clients.items():
            if client is not None:
                color, dashes = client_style(client)
                values = percent(metric) * np.array(list(series.values()))
                look = {"color": color, "linestyle": dashes, "linewidth": 0.6, "alpha": 0.6}
                axes.plot(list(series), values, label=label, **look)
                label = "_"  # one line in the legend for all of them
        mean = mean_over_clients(run, split, metric)
        values = percent(metric) * np.array(list(mean.values()))
        axes.plot(list(mean), values, color="black", linewidth=1.8, label="mean over clients")
        mark_events(axes, [group])
        round_axis(axes)
        axes.set_ylabel(f"{split} {METRIC_LABELS.get(metric, metric)}")
        axes.legend(loc="best")
        return figure


def _check(graph: Graph) -> None:
    if graph.empty:
        raise ConfigError(f"after round {graph.round}, {graph.empty}")
