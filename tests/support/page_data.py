"""What a page of the report has inside, read as its JavaScript reads it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from cobo_dist.reports.page.explorer import decode
from cobo_dist.reports.page.weights_data import unpack


def explorers(page: str) -> list[dict[str, Any]]:
    """The data of the explorers on a page."""
    return [decode(text) for text in re.findall(r"<script type='text/plain'>(.*?)</script>", page)]


def weights_on(page: str) -> list[dict[str, Any]]:
    """The data of W in the first explorer, run by run."""
    return [run["weights"] for run in explorers(page)[0]["runs"] if run["weights"]]


def levels_of(weights: dict[str, Any]) -> np.ndarray:
    """The bytes of W, [k, n, n]."""
    return unpack(weights["weights"], weights["n"])
