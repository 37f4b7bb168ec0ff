"""Reads a run folder into a `Run` and refuses, with the place named, what it cannot trust."""

from cobo_dist.reports.reading.run import Run, read_run
from cobo_dist.reports.reading.weights import Weights

__all__ = ["Run", "Weights", "read_run"]
