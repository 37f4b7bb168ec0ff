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
from cobo_dist.maths.graph import component_labels, link_threshold
from cobo_dist.maths.weights import Weights
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
    from torch import nn


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
        found = self.weight_rounds
        if r not in found:
            there = ", ".join(map(str, found[:10])) + (
                f", ... {found[-1]}" if len(found) > 10 else ""
            )
            raise ConfigError(
                f"W was not logged after round {r}; {self.path} has "
                f"{f'rounds {there}' if found else 'no snapshot yet'} (run.log_weights_every)"
            )
        return logs.read_weights(self.path, r)

    @property
    def link_threshold(self) -> float:
        """The least weight that counts as a link: 0.5 or, where rows of W sum to 1, an equal share."""
        return link_threshold(self.config.algorithm.equal_share(len(self.W)))

    def clusters(self, threshold: float | None = None) -> NDArray[np.int64]:
        """Return the cluster of each client that W shows, int64 [n], numbered in the order of clients.

        Clusters are the connected components of the graph that links clients whose weight is at least
        `threshold`; None: `link_threshold`.
        """
        weights = self.W
        least = self.link_threshold if threshold is None else threshold
        return component_labels(Weights.of_rows(range(len(weights)), weights), least)

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
