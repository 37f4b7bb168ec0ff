"""Imports matplotlib whatever `MPLBACKEND` says: Jupyter sets it to a backend that may not be installed.

Figures draw on a canvas of their own (`style.canvas`) and need no backend. The package imports this module
before any other that imports matplotlib.
"""

from __future__ import annotations

import os
from contextlib import suppress


def _import_matplotlib() -> None:
    wanted = os.environ.pop(
        "MPLBACKEND", None
    )  # matplotlib refuses to be imported with an unknown one
    import matplotlib

    if wanted is not None:
        os.environ["MPLBACKEND"] = wanted
        with suppress(ValueError):  # a notebook goes on with its own backend, where there is one
            matplotlib.rcParams["backend"] = wanted


_import_matplotlib()
