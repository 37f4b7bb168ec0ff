"""`Run`: what one run folder holds, read when it is asked for.

Shapes: n clients.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.config import Config, load_config
from cobo_dist.errors import ConfigError
from cobo_dist.maths.graph import link_threshold
from cobo_dist.results import logs
from cobo_dist.storage.reading import SchemaError, read_record, read_status
from cobo_dist.storage.schema import (
    CONFIG_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    EvalRow,
    RoundRow,
    Status,
    Summary,
)

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

    from cobo_dist.reports.reading.graph import Graph
    from cobo_dist.reports.reading.groups import Groups


class Run:
    """One run folder. Each access reads the files as they are now, so an unfinished run is readable."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> Config:
        """The resolved config.

        Raises:
            ConfigError: it cannot be read.
        """
        return load_config(str(self.path / CONFIG_FILE), [])

    @property
    def status(self) -> Status | None:
        """How the run ended: `exit_code`, `status`, `reason`; None while it has not."""
        return read_status(self.path)

    @property
    def summary(self) -> Mapping[str, Any] | None:
        """summary.json as a dictionary, such as `summary["final"]["accuracy"]`; None until it is written.

        Raises:
            ConfigError: it cannot be read.
        """
        path = self.path / SUMMARY_FILE
        try:
            return dict(json.loads(read_record(path, Summary).to_json()))
        except FileNotFoundError:
            return None
        except (OSError, SchemaError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None

    @property
    def metrics(self) -> pandas.DataFrame:
        """Evaluations: columns `round`, `client` (missing: the mean), `split`, the metrics, and others.

        Raises:
            ConfigError: metrics.jsonl cannot be read.
        """
        return logs.read_rows(self.path, EvalRow)

    @property
    def rounds(self) -> pandas.DataFrame:
        """Rounds: columns `round`, `loss`, `pairs`, `seconds`, `bytes_sent` and others of docs/FILES.md.

        Raises:
            ConfigError: metrics.jsonl cannot be read.
        """
        return logs.read_rows(self.path, RoundRow)

    @property
    def weight_rounds(self) -> list[int]:
        """The rounds after which W was logged, ascending."""
        return logs.weight_rounds(self.path)

    @property
    def W(self) -> NDArray[np.floating[Any]]:  # the paper's name
        """The last logged W, [n, n], of type `run.dtype`.

        Raises:
            ConfigError: none is logged yet, or W.npz cannot be read.
        """
        return self.weights(max(self.weight_rounds, default=0))

    def weights(self, r: int) -> NDArray[np.floating[Any]]:
        """Return W after round r, [n, n], of type `run.dtype`.

        Raises:
            ConfigError: W was not logged then; the message names the rounds there are.
        """
        self._check_round(r)
        return logs.read_weights(self.path, r)

    def _check_round(self, r: int) -> None:
        found = self.weight_rounds
        if r not in found:
            there = ", ".join(map(str, found[:10])) + (
                f", ... {found[-1]}" if len(found) > 10 else ""
            )
            raise ConfigError(
                f"W was not logged after round {r}; {self.path} has "
                f"{f'rounds {there}' if found else 'no snapshot yet'} (run.log_weights_every)"
            )

    @property
    def link_threshold(self) -> float:
        """The least weight that counts as a link: 0.5 or, where rows of W sum to 1, an equal share."""
        return link_threshold(self.config.algorithm.equal_share(len(self.W)))

    def clusters(self, threshold: float | None = None) -> NDArray[np.int64]:
        """Return the group of each client that W shows, int64 [n]: `groups(threshold).labels`."""
        return self.groups(threshold).labels

    def groups(self, threshold: float | None = None, r: int | None = None) -> Groups:
        """Return the groups of clients that W shows; `print` says them in words.

        Groups are the connected components of the graph that links clients whose weight is at least
        `threshold`, in either direction. `.labels` [n] are the clients' groups, numbered in the order of
        clients, -1 for those that are not in the run; looping gives each group's clients.

        Args:
            threshold: the least weight of a link; None: `link_threshold`.
            r: after which of `weight_rounds`; None: the last.

        Raises:
            ConfigError: W was not logged then, or the threshold is not a positive number.
        """
        return self._graph(threshold, r).groups

    def plot_weights(
        self, threshold: float | None = None, r: int | None = None, ax: Axes | None = None
    ) -> Figure:
        """Draw W with linked clients side by side, framed by group, under its dendrogram.

        Args:
            threshold: as for `groups`, likewise r.
            r: after which of `weight_rounds`; None: the last.
            ax: matplotlib's axes to draw into; None: a new figure.

        Returns:
            the figure, which a notebook shows, and `savefig` saves.

        Raises:
            ConfigError: there is nothing to draw; the message says why.
        """
        from cobo_dist.reports.figures import plots  # it imports matplotlib

        return plots.plot_weights(self._graph(threshold, r), ax)

    def plot_graph(
        self, threshold: float | None = None, r: int | None = None, ax: Axes | None = None
    ) -> Figure:
        """Draw clients as points and their links as lines; arguments as of `plot_weights`."""
        from cobo_dist.reports.figures import plots

        return plots.plot_graph(self._graph(threshold, r), ax)

    def plot_map(
        self,
        of: str | None = None,
        threshold: float | None = None,
        r: int | None = None,
        ax: Axes | None = None,
    ) -> Figure:
        """Draw clients in the plane, near those that are alike.

        Args:
            of: "models": principal components of the saved models, which are those of the last round;
                "weights": a spectral embedding of W; None: both side by side or, with `ax`, the first
                that there is.
            threshold: as of `plot_weights`; without true clusters, colors are those of the groups.
            r: as of `plot_weights`.
            ax: as of `plot_weights`.

        Raises:
            ConfigError: there is nothing to draw; the message says why.
        """
        from cobo_dist.reports.figures import plots

        return plots.plot_map(self.path, self._graph(threshold, r), of, ax)

    def plot_stability(self, ax: Axes | None = None) -> Figure:
        """Draw how links and groups change from snapshot to snapshot; `ax` as of `plot_weights`."""
        from cobo_dist.reports.figures import plots
        from cobo_dist.reports.reading import read_run

        return plots.plot_stability(read_run(self.path), ax)

    def plot_curves(
        self, metric: str | None = None, split: str | None = None, ax: Axes | None = None
    ) -> Figure:
        """Draw a metric over the rounds, each client thin and the mean in bold.

        Args:
            metric: such as "loss"; None: accuracy or perplexity, where there is one.
            split: "test" or "validation"; None: the test data, if it was evaluated.
            ax: as of `plot_weights`.

        Raises:
            ConfigError: it was not evaluated; the message names what was.
        """
        from cobo_dist.reports.figures import plots
        from cobo_dist.reports.reading import read_run

        return plots.plot_curves(read_run(self.path), metric, split, ax)

    def _graph(self, threshold: float | None, r: int | None) -> Graph:
        from cobo_dist.reports.reading import read_run
        from cobo_dist.reports.reading.graph import graph_of

        self._check_round(max(self.weight_rounds, default=0) if r is None else r)
        weights = read_run(self.path).weights
        assert weights is not None
        return graph_of(weights, r, threshold)

    def model(self, client: int) -> nn.Module:
        """Return one client's model in evaluation mode.

        A classifier has `predict(inputs)`, which takes the data's own inputs and returns its labels. A model
        of the language task is a PEFT model. Before the run has saved its models, they come from the newest
        checkpoint.

        Raises:
            ConfigError: there is no such client or no saved model yet, or a file cannot be read.
        """
        from cobo_dist.results.models import load_model  # it imports torch

        return load_model(self.path, self.config, client)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Return the run in a folder, finished or not.

    Raises:
        ConfigError: the folder does not exist or holds no run.
    """
    run = Run(path)
    if not run.path.is_dir():
        what = "is a file, not a run folder" if run.path.exists() else "does not exist"
        raise ConfigError(f"{run.path} {what}; give the run.dir of a run")
    for name in (CONFIG_FILE, METRICS_FILE):
        if not (run.path / name).is_file():
            raise ConfigError(
                f"{run.path} is no run folder: it has no {name}; give the run.dir of a run"
            )
    return run
