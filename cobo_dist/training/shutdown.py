"""How a run ends: the summary of one that is done, the one line of one that failed."""

from __future__ import annotations

import math
import os
import resource
import time
import traceback
from collections.abc import Sequence, Set
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from cobo_dist.comm.session import Session
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.comm.transports.torch_transport import LostContact
from cobo_dist.config import Config
from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, ConfigError, RunFailure
from cobo_dist.formatting import human_bytes
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import FORMAT, SUMMARY_FILE, ClientResult, PlacementSummary, Summary
from cobo_dist.tracking.progress import final_table
from cobo_dist.tracking.run_logger import RunLogger

ECHO = "an echo: "
"""Begins the report of a rank that did not fail by itself, but lost contact with another."""

SOON, LATER = 2.0, 10.0
"""Seconds in which other ranks' reports are waited for where contact was lost: by rank 0; by the others."""


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this rank has held: of the GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # counted in KiB
    # What getrusage says may be the peak of the process that started this one.
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(peak)


def finish(
    config: Config,
    peaks: Sequence[int],
    metrics: Sequence[str],
    run_logger: RunLogger,
    seconds: float,
    placement: PlacementSummary | None = None,
) -> None:
    """Write the summary and print the table; `peaks` are the most bytes each rank has held.

    `placement`: what moving clients cost and saves, where they may move.
    """
    ranks = len(peaks)
    results = run_logger.last_evaluation
    final = {name: float(np.mean([one[name] for one in results])) for name in metrics}
    summary = Summary(
        format=FORMAT,
        task=config.task.name,
        algorithm=config.algorithm.name,
        seed=config.run.seed,
        rounds=config.run.rounds,
        clients=len(results),
        ranks=ranks,
        seconds=round(seconds, 3),
        bytes_sent=sum(run_logger.bytes[purpose] for purpose in (*TRAINING, "moving")),
        final=dict(final),
        per_client=[
            ClientResult.model_validate({"client": client, **one})
            for client, one in enumerate(results)
        ],
        cluster_match=run_logger.match(),
    )
    if placement is not None:
        summary.placement = placement
    run_logger.traffic(peaks)
    run_logger.folder.write_record(SUMMARY_FILE, summary)
    run_logger.folder.write_status(EXIT_DONE, "done")
    run_logger.display.close()
    rows = [(name, f"{value:.4g}") for name, value in final.items()]
    rows.append(("rounds", f"{config.run.rounds} in {seconds:.1f} s"))
    rows.append(("sent", f"{human_bytes(summary.bytes_sent)} by {ranks} rank(s)"))
    rows.append(("memory", f"{human_bytes(max(peaks))} on a rank at most"))
    match, means = run_logger.match(), run_logger.weights_by_truth()
    if match is not None and means is not None and not any(map(math.isnan, means)):
        rows.append(("links right", f"{100 * match:.1f}% of client pairs"))
        rows.append(("mean W", f"{means[0]:.2f} within clusters, {means[1]:.2f} across"))
    with suppress(BrokenPipeError):  # whoever reads along may have left; the run is complete
        final_table(rows, ("final (mean of clients, test)", "value"))
        print(f"run folder  {run_logger.folder.path}", flush=True)


def failure(error: BaseException, session: Session, folder: RunDir, r: int = 0) -> RunFailure:
    """Leave a report of what ended this rank in round r, and return the one line that says it.

    Where contact was lost, another rank is the cause; the lowest of the ranks that are left says which one.
    """
    line, rank = one_line(error), session.transport.rank
    here_only = error.here_only if isinstance(error, RunFailure) else True
    lost = isinstance(error, LostContact)
    head = ECHO if lost else f"rank {rank} on {os.uname().nodename} failed in round {r}: "
    has_told = False
    with suppress(OSError):
        if folder.claimed:
            stack = "".join(traceback.format_exception(error))
            folder.error_report(rank, f"{head}{line}\n\n{stack}")
            has_told = True
    if rank == 0:
        _leave_status(folder, line)  # at once: the launcher may be about to end this rank too
    if isinstance(error, LostContact):
        if not has_told:  # no folder yet, or a full disk: whoever is left of the first two speaks
            return RunFailure(line, here_only=rank == 1)
        _forget_frames(error)
        session.hang_up()
        told = _ask_the_reports(folder, line, rank, error.peers, r)
        here_only = told is not None
        if told is not None:
            line = told
            _leave_status(folder, line)
    return RunFailure(line, here_only)


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what an error's stack holds: the process group is part of it, and would stay open."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _leave_status(folder: RunDir, line: str) -> None:
    with suppress(RunFailure):  # of a full disk, where even this finds no room
        if folder.claimed:
            folder.write_status(EXIT_FAILED, "failed", line)


def one_line(error: BaseException) -> str:
    """Return an error as one line: its own words, and its kind where it is not ours."""
    text = " ".join(str(error).split())
    if isinstance(error, (ConfigError, RunFailure)):
        return text
    # torch has a class of its own only for GPUs.
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
        return (
            f"out of memory ({text or type(error).__name__}): lower data.batch_size or run.threads, or "
            "start more ranks, of which each then holds fewer clients"
        )
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard"
    return f"{type(error).__name__}: {text}"


def _ask_the_reports(folder: RunDir, line: str, rank: int, peers: Set[int], r: int) -> str | None:
    """Wait for the other ranks' reports and return what ended the run; None if a lower rank says it.

    A rank that failed by itself has left its reason, and one that lost contact that it did. Who leaves
    nothing was killed, or hangs.
    """
    hosts = [host.split()[0] for host in folder.environment().ranks]
    # Rank 0, if it was not the one, may be in the middle of a long round, and hear of it only at its end.
    soon = rank == 0 or 0 in peers or len(hosts) == 2
    until = time.monotonic() + (SOON if soon else LATER)
    echoes: set[int] = set()
    while True:
        late = time.monotonic() > until
        there = folder.error_reports()
        if any(other < rank for other in there):
            return None
        if rank == 0 or late:
            for other in sorted(there.keys() - echoes):
                with suppress(OSError):
                    first = there[other].read_text(encoding="utf-8").partition("\n")[0]
                    if not first.startswith(ECHO):
                        return f"{first} (traceback in {there[other]})"
                    echoes.add(other)
        silent = set(range(len(hosts))) - there.keys() - {rank}
        if late or (hosts and not silent):
            break
        time.sleep(0.1)
    line = f"{line}; this was " + (f"in round {r}" if r else "before the first round")
    if names := ", ".join(f"rank {k} on {hosts[k]}" for k in sorted(silent & peers or silent)):
        line += f", since when nothing was heard of {names}: killed, out of memory, or hanging"
    return line
