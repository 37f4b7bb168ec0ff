"""Reads a run folder into a `Run` and refuses, with the place named, what it cannot trust."""

from cobo_dist.reports.reading.run import Run, Weights, read_run

__all__ = ["Run", "Weights", "read_run"]
