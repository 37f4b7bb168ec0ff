"""The ends of a run before its last round: stopped by a signal, or failed with one line that says why."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress

import torch

from cobo_dist.comm.nccl_group import is_device_error
from cobo_dist.comm.session import Session
from cobo_dist.comm.transports.base import LostContact
from cobo_dist.errors import (
    EXIT_BY_SIGNAL,
    EXIT_FAILED,
    EXIT_STOPPED,
    ConfigError,
    RunFailure,
    words_of,
)
from cobo_dist.plugins import place_in_plugin
from cobo_dist.storage.files import read_file
from cobo_dist.storage.owner import TakenOver
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.training.lost_contact import Loss, describe_loss
from cobo_dist.training.signals import name_of
from cobo_dist.training.trainer import Trainer

LOST_CONTACT_MARK = "lost contact: "
"""First words of the error report of a rank that did not fail by itself, but lost contact with another."""

SHORT_REPORT_WAIT_SECONDS, LONG_REPORT_WAIT_SECONDS = 2.0, 10.0
"""How long a rank that lost contact waits for other ranks' error reports. The long wait is for ranks other
than 0 while rank 0 may still be in a long round and notice the loss only at its end. It also bounds the wait
after a time-out, which other ranks may see later."""

_REPORT_POLL_SECONDS = 0.1

NEWS_SECONDS = 1.0
"""How long a rank that lost contact waits for the news that another rank has died."""


# -- stopped ---------------------------------------------------------------------------------------


def stop(trainer: Trainer, session: Session, folder: RunDir, signal: int) -> int:
    """Record that a signal stopped the run and how it goes on; return the exit code. All ranks call this."""
    if (run_logger := trainer.metrics.run_logger) is not None:
        line = (
            f"stopped by {name_of(signal)} after round {trainer.round} of "
            f"{trainer.schedule.rounds}, with a checkpoint; the same command with run.resume=auto "
            "goes on"
        )
        run_logger.flush()
        folder.write_status(EXIT_STOPPED, "stopped", line)
        run_logger.display.print(line)
    # Launchers end all ranks when one leaves, so no rank leaves before status.json is written. A rank
    # that is lost by now has written its part of the checkpoint.
    with suppress(LostContact):
        session.agree(None)
    return EXIT_STOPPED


# -- failed ----------------------------------------------------------------------------------------


def failure(error: BaseException, session: Session, folder: RunDir, r: int = 0) -> RunFailure:
    """Report what ended this rank in round r, in the run folder; return the failure with its one line.

    Where contact was lost, another rank is the cause: the lowest rank that is left names it.
    """
    line, rank = one_line(error), session.transport.rank
    here_only = error.here_only if isinstance(error, RunFailure) else True
    lost, stopped = isinstance(error, LostContact), session.liveness.stopped_seconds()
    when = f"in round {r}" if r else "before the first round"
    head = LOST_CONTACT_MARK if lost else f"rank {rank} on {os.uname().nodename} failed {when}: "
    taken_over = error if isinstance(error, TakenOver) else folder.taken_over()
    if taken_over is not None:
        return taken_over
    reported = False
    with suppress(OSError, TakenOver):
        if folder.owner is not None:
            stack = "".join(traceback.format_exception(error))
            loss = Loss.of(error, stopped).to_line() if isinstance(error, LostContact) else ""
            folder.error_report(rank, f"{head}{line}\n{loss}\n{stack}")
            reported = True
    if rank == 0:
        _write_status(folder, line)  # at once: the launcher may be about to end this rank too
    if isinstance(error, LostContact):
        # Before anything is awaited: others may be waiting for this rank.
        _clear_frames(error)
        session.disconnect()
        ended = session.liveness.failure(NEWS_SECONDS)
        if not reported:  # no folder yet, or a full disk
            return ended or RunFailure(line, here_only=rank == 1)
        if ended is not None and ended.code > EXIT_BY_SIGNAL:  # while rank 0 was taking the folder
            if rank == 0:
                _write_status(folder, str(ended), ended.code)
            return ended
        if ended is None:  # with NCCL nothing else tells the others
            session.liveness.report(f"{head}{line}")
        hosts = session.liveness.hosts
        if ended is not None and ended.died:
            speaks = rank == 0 or ended.here_only
            death = f", since when nothing was heard of rank {ended.rank} on {hosts[ended.rank]}: it was "
            cause = _with_round(line, r, f"{death}killed, or ran out of memory") if speaks else None
        else:
            cause = _cause_by_reports(folder, hosts, line, rank, Loss.of(error, stopped), r)
        here_only = cause is not None
        if cause is not None:
            line = cause
            _write_status(folder, line)
    elif session.liveness.report(f"{head}{line}") and not reported:
        here_only = False  # rank 0 prints it
    return RunFailure(line, here_only)


def one_line(error: BaseException) -> str:
    """Return an error as one line: its own words, and its kind where it is not ours."""
    text = words_of(error)
    if isinstance(error, (ConfigError, RunFailure)):
        return text
    where = f"({text or type(error).__name__})"
    if isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory" in text:
        return (
            f"out of memory on the GPU {where}: raise data.accumulation and lower data.batch_size, set "
            "run.engine=one_by_one or run.autocast=bfloat16, or start more ranks, of which each then holds "
            "fewer clients"
        )
    # torch has a class of its own only for GPUs.
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return (
            f"out of memory {where}: lower data.batch_size or run.threads, or start more ranks, of which "
            "each then holds fewer clients"
        )
    if is_device_error(error):
        return (
            f"the GPU failed {where}: see nvidia-smi and the kernel's log for Xid and ECC errors; resume on "
            "another GPU, or find the call with CUDA_LAUNCH_BLOCKING=1"
        )
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard"
    place = place_in_plugin(error)
    return f"{f'{place}: ' if place else ''}{type(error).__name__}: {text}"


def _write_status(folder: RunDir, line: str, code: int = EXIT_FAILED) -> None:
    with suppress(RunFailure):  # a full disk may be what ended the run
        if folder.owner is not None:
            folder.write_status(code, "failed" if code == EXIT_FAILED else "stopped", line)


def _clear_frames(error: BaseException | None) -> None:
    """Drop the locals of an error's stack: they hold the process group, which would stay open."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _cause_by_reports(
    folder: RunDir, hosts: Sequence[str], line: str, rank: int, loss: Loss, r: int
) -> str | None:
    """Wait for other ranks' reports and return what ended the run; None if a lower rank will say it.

    A rank that failed by itself reports its reason, and one that lost contact reports that. A rank without
    a report was killed, or hangs. If all have reported, what lies between two of them failed.
    """
    until = time.monotonic() + _report_wait_seconds(loss, rank, len(hosts))
    losses = {rank: loss}
    while True:
        is_late = time.monotonic() > until
        reports = folder.error_reports()
        if any(other < rank for other in reports):
            return None
        if rank == 0 or is_late:
            for other in sorted(reports.keys() - losses.keys()):
                with suppress(OSError):
                    text = read_file(reports[other]).decode(errors="replace")
                    first, second, *_ = [*text.split("\n", 2), ""]
                    if not first.startswith(LOST_CONTACT_MARK):
                        return f"{first} (traceback in {reports[other]})"
                    losses[other] = Loss.of_line(second)
        if is_late or (hosts and len(reports.keys() | {rank}) >= len(hosts)):
            break
        time.sleep(_REPORT_POLL_SECONDS)
    return _with_round(line, r, describe_loss(losses, hosts, rank))


def _with_round(line: str, r: int, cause: str) -> str:
    return f"{line}; this was {f'in round {r}' if r else 'before the first round'}{cause}"


def _report_wait_seconds(loss: Loss, rank: int, ranks: int) -> float:
    """Return how long to wait for the other ranks' reports."""
    if loss.how != "closed":  # the others may have begun to wait a little later
        return min(max(loss.waited / 4, SHORT_REPORT_WAIT_SECONDS), LONG_REPORT_WAIT_SECONDS)
    is_short = rank == 0 or 0 in loss.peers or ranks == 2
    return SHORT_REPORT_WAIT_SECONDS if is_short else LONG_REPORT_WAIT_SECONDS
