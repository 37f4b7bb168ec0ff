"""Draws a run's figures at its end."""

from __future__ import annotations

import subprocess
import sys

from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import FIGURES_DIR


def draw_figures(folder: RunDir) -> None:
    """Draw the run's figures in a process of its own, so that a plot that fails does not fail the run."""
    reason = ""
    try:
        with folder.filling(FIGURES_DIR, "rank_00000") as drafts:
            command = [
                sys.executable,
                "-m",
                "cobo_dist.report",
                str(folder.path),
                "--out",
                str(drafts),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines()[-1:] or ["no reason given"])[0]
    except OSError as error:
        reason = f"{error.filename or folder.path}: {error.strerror}"
    if reason:
        print(f"figures could not be drawn: {reason}", file=sys.stderr)
    else:
        print(f"figures     {folder.path / FIGURES_DIR}", flush=True)
