"""What a finished run leaves: models, summary.json, the printed table."""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cobo_dist.comm.session import Session
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.errors import EXIT_DONE
from cobo_dist.formatting import human_bytes
from cobo_dist.storage.disk import writing
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tracking.progress import final_table
from cobo_dist.tracking.run_logger import RunLogger
from cobo_dist.training.trainer import Learner, Trainer


def finish(
    trainer: Trainer, session: Session, folder: RunDir, about: Mapping[str, str | int]
) -> None:
    """Write models, traffic and summary, and print the table; all ranks call this.

    `about`: what the summary says of the run first: task, algorithm, seed, rounds.
    """
    learner, run_logger = trainer.learner, trainer.metrics.run_logger
    _save_models(learner, folder)
    placement = trainer.migrator.summary(learner.algorithm)
    # The summary comes last: all models are written, and all bytes that logging sent are counted.
    mine = f"{learner.exchange.traffic.bytes['logging']} {peak_memory(session.device)}"
    records = [one.decode().split() for one in session.transport.gather(mine.encode())]
    if run_logger is None:
        return
    run_logger.bytes["logging"] += sum(int(logged) for logged, _ in records)
    peaks = [int(peak) for _, peak in records]
    seconds = trainer.seconds + run_logger.seconds_before
    results = run_logger.last_evaluation
    final = {name: float(np.mean([one[name] for one in results])) for name in learner.task.metrics}
    summary: dict[str, Any] = {
        **about,
        "clients": len(results),
        "ranks": len(peaks),
        "seconds": round(seconds, 3),
        "bytes_sent": sum(run_logger.bytes[purpose] for purpose in (*TRAINING, "moving")),
        "final": {name: _finite(value) for name, value in final.items()},
        "per_client": [
            {"client": client, **{name: _finite(value) for name, value in one.items()}}
            for client, one in enumerate(results)
        ],
        "cluster_match": run_logger.match(),
    }
    if placement is not None:
        summary["placement"] = placement
    run_logger.traffic(peaks)
    folder.write_json("summary.json", summary)
    folder.status(EXIT_DONE, "done")
    run_logger.display.close()
    with suppress(BrokenPipeError):  # the reader of a pipe may have left; the run is complete
        final_table(
            _table(run_logger, summary, final, peaks), ("final (mean of clients, test)", "value")
        )
        print(f"run folder  {folder.path}", flush=True)


def _save_models(learner: Learner, folder: RunDir) -> None:
    for row, client in enumerate(learner.clients.ids):
        path = folder.model_path(client)
        state = learner.clients.state_dict(row)
        with writing(path, sum(one.nbytes for one in state.values())):
            # Rank 0 made the run folder on its own host: without a shared disk it is missing here.
            path.parent.mkdir(exist_ok=True, parents=True)
            learner.task.save(state, path)


def _finite(value: float) -> float | None:
    """Return the value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def _table(
    run_logger: RunLogger,
    summary: Mapping[str, Any],
    final: Mapping[str, float],
    peaks: Sequence[int],
) -> list[tuple[str, str]]:
    """Return the rows (name, value) of the table at the end."""
    rows = [(name, f"{value:.4g}") for name, value in final.items()]
    rows += [
        ("rounds", f"{summary['rounds']} in {summary['seconds']:.1f} s"),
        ("sent", f"{human_bytes(summary['bytes_sent'])} by {len(peaks)} rank(s)"),
        ("memory", f"{human_bytes(max(peaks))} on a rank at most"),
    ]
    match, means = summary["cluster_match"], run_logger.weights_by_truth()
    if match is not None and means is not None and not any(map(math.isnan, means)):
        rows.append(("link accuracy", f"{100 * match:.1f}% of client pairs"))
        rows.append(("mean W", f"{means[0]:.2f} within clusters, {means[1]:.2f} across"))
    return rows


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this rank has held: of the GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # counted in KiB
    # getrusage may report the peak of the process that started this one, and psutil reports none.
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(peak)
