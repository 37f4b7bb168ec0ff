"""How a run ends: the summary of one that is done, the one line of one that failed."""

from __future__ import annotations

import math
import resource
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from cobo_dist.comm.ledger import TRAINING
from cobo_dist.comm.transport import LostContact
from cobo_dist.config import Config
from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, Refusal, RunFailure

from .book import Book
from .folder import RunFolder
from .progress import final_table, human_bytes


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this rank has held: of the GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB


def finish(
    config: Config, peaks: Sequence[int], metrics: Sequence[str], book: Book, seconds: float
) -> None:
    """Write the summary and print the table; `peaks` are the most bytes each rank has held."""
    ranks = len(peaks)
    results = book.last_evaluation
    final = {name: float(np.mean([one[name] for one in results])) for name in metrics}
    summary: dict[str, Any] = {
        "task": config.task.name,
        "algorithm": config.algorithm.name,
        "seed": config.run.seed,
        "rounds": config.run.rounds,
        "clients": len(results),
        "ranks": ranks,
        "seconds": round(seconds, 3),
        "bytes_sent": sum(book.bytes[purpose] for purpose in TRAINING),
        "final": {name: _finite(value) for name, value in final.items()},
        "per_client": [
            {"client": client, **{name: _finite(value) for name, value in one.items()}}
            for client, one in enumerate(results)
        ],
        "cluster_match": book.match(),
    }
    book.ledger(peaks)
    book.folder.write_json("summary.json", summary)
    book.folder.status(EXIT_DONE, "done")
    book.display.close()
    rows = [(name, f"{value:.4g}") for name, value in final.items()]
    rows.append(("rounds", f"{config.run.rounds} in {seconds:.1f} s"))
    rows.append(("sent", f"{human_bytes(summary['bytes_sent'])} by {ranks} rank(s)"))
    rows.append(("memory", f"{human_bytes(max(peaks))} on a rank at most"))
    match, means = book.match(), book.weights_by_truth()
    if match is not None and means is not None and not any(map(math.isnan, means)):
        rows.append(("links right", f"{100 * match:.1f}% of client pairs"))
        rows.append(("mean W", f"{means[0]:.2f} within clusters, {means[1]:.2f} across"))
    with suppress(BrokenPipeError):  # whoever reads along may have left; the run is complete
        final_table(rows, ("final (mean of clients, test)", "value"))
        print(f"run folder  {book.folder.path}", flush=True)


def _finite(value: float) -> float | None:
    """Return the value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def failure(error: BaseException, rank: int, folder: RunFolder) -> RunFailure:
    """Leave a report of what ended this rank, and return the one line that says it."""
    line = one_line(error)
    with suppress(OSError):
        if folder.claimed:
            folder.error_report(rank, "".join(traceback.format_exception(error)))
    if rank == 0:
        _leave_status(folder, line)  # at once: the launcher may be about to end this rank too
        if isinstance(error, LostContact) and (cause := _look_for_cause(folder)):
            line = cause
            _leave_status(folder, line)
    return RunFailure(line, error.here_only if isinstance(error, RunFailure) else True)


def _leave_status(folder: RunFolder, line: str) -> None:
    with suppress(RunFailure):  # of a full disk, where even this finds no room
        if folder.claimed:
            folder.status(EXIT_FAILED, "failed", line)


def one_line(error: BaseException) -> str:
    """Return an error as one line: its own words, and its kind where it is not ours."""
    text = " ".join(str(error).split())
    if isinstance(error, (Refusal, RunFailure)):
        return text
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard"
    return f"{type(error).__name__}: {text}"


def _look_for_cause(folder: RunFolder, patience: float = 2.0) -> str | None:
    """Return the line of the rank that failed first, where losing contact was only its echo."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        for path in sorted((folder.path / "errors").glob("rank_*.txt")):
            last = path.read_text(encoding="utf-8").strip().splitlines()[-1:]
            if last and "LostContact" not in last[0]:
                number = int(path.stem.removeprefix("rank_"))
                # Our own failures need no name before their words.
                line = last[0].removeprefix(f"{RunFailure.__module__}.{RunFailure.__qualname__}: ")
                return f"rank {number} failed: {line} (traceback in {path})"
        time.sleep(0.1)
    return None
