"""The ends of a run: finished with results, stopped by a signal, failed with one line that says why."""

from __future__ import annotations

import math
import os
import resource
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cobo_dist.comm.nccl_group import is_device_error
from cobo_dist.comm.session import Session
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.comm.transports.base import LostContact
from cobo_dist.errors import (
    EXIT_BY_SIGNAL,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    ConfigError,
    RunFailure,
    words_of,
)
from cobo_dist.formatting import human_bytes
from cobo_dist.plugins import place_in_plugin
from cobo_dist.storage.files import read_file
from cobo_dist.storage.owner import TakenOver
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import FORMAT, SUMMARY_FILE, BytesPerClient, ClientResult, Summary
from cobo_dist.tracking.progress import final_table
from cobo_dist.tracking.run_logger import RunLogger, mean_of
from cobo_dist.training.learner import Learner
from cobo_dist.training.lost_contact import Loss, describe_loss
from cobo_dist.training.model_metadata import model_metadata
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


# -- finished --------------------------------------------------------------------------------------


def finish(trainer: Trainer, session: Session, folder: RunDir, algorithm: str) -> int:
    """Write models and summary, print the table, return the exit code. All ranks call this."""
    learner, run_logger = trainer.learner, trainer.metrics.run_logger
    rounds_n1 = _put_back_kept(trainer)
    _save_models(learner, folder, session.transport.rank)
    placement = trainer.migrator.summary()
    # The summary comes last: all models are written, and all bytes that logging sent are counted.
    mine = f"{learner.exchange.traffic.bytes['logging']} {peak_memory(session.device)}"
    records = [one.decode().split() for one in session.transport.gather(mine.encode())]
    if run_logger is None:
        return EXIT_DONE
    run_logger.bytes["logging"] += sum(int(logged) for logged, _ in records)
    peaks = [int(peak) for _, peak in records]
    seconds = trainer.seconds + run_logger.seconds_before
    results, graph = run_logger.last_evaluation, run_logger.graph
    assert graph is not None, "W is logged before round 1"
    cluster_n = graph.clusters_found()
    members_n = run_logger.members(trainer.last)
    in_run = [members_n is None or bool(members_n[client]) for client in range(len(results))]
    final = mean_of(list(compress(results, in_run)), learner.task.metrics)
    summary = Summary(
        format=FORMAT,
        task=learner.task.name,
        algorithm=algorithm,
        seed=trainer.schedule.seed,
        rounds=trainer.last,
        clients=len(results),
        ranks=len(peaks),
        seconds=round(seconds, 3),
        bytes_sent=sum(run_logger.bytes[purpose] for purpose in (*TRAINING, "moving")),
        bytes_per_client=_bytes_per_client(run_logger, len(results)),
        keep=trainer.keeper.rule,
        final=dict(final),
        per_client=[
            ClientResult.model_validate(
                {
                    "client": client,
                    "cluster": int(cluster_n[client]) if in_run[client] else None,
                    "round": trainer.last if rounds_n1 is None else int(rounds_n1[client, 0]),
                    **(one if in_run[client] else dict.fromkeys(one)),
                }
            )
            for client, one in enumerate(results)
        ],
        clusters_found=int(cluster_n.max()) + 1,
        link_threshold=graph.link,
    ).model_copy(update=graph.agreement(run_logger.clusters, run_logger.true_graph))
    if placement is not None:
        summary.placement = placement
    if (timing := learner.clients.participation.timing) is not None and trainer.last:
        summary.virtual_seconds = timing.at(trainer.last - 1).seconds
    run_logger.traffic(peaks)
    folder.write_record(SUMMARY_FILE, summary)
    folder.write_status(EXIT_DONE, "done", trainer.stopped_early)
    run_logger.display.close()
    if trainer.stopped_early:
        print(trainer.stopped_early, flush=True)
    final_table(
        _table(run_logger, summary, final, peaks), ("final (mean of clients, test)", "value")
    )
    print(f"run folder  {folder.path}", flush=True)
    return EXIT_DONE


def _put_back_kept(trainer: Trainer) -> NDArray[np.floating] | None:
    """Take up the kept models and evaluate them; return their rounds [n, 1] on rank 0, None for the last."""
    kept = trainer.learner.clients.kept
    if kept is None:
        return None
    trainer.keeper.put_back()
    splits = trainer.schedule.eval_splits
    trainer.metrics.evaluate(trainer.last, splits, whole=True, model="kept")
    return trainer.learner.exchange.gather_rows(kept.rounds_c1.double().numpy())


def _bytes_per_client(run_logger: RunLogger, clients: int) -> BytesPerClient | None:
    total = run_logger.client_bytes
    if total is None:
        return None
    return BytesPerClient(up=total["up"] / clients, down=total["down"] / clients)


def _save_models(learner: Learner, folder: RunDir, rank: int) -> None:
    metadata_of = model_metadata(learner.task)
    for row, client in enumerate(learner.clients.ids):
        state = learner.clients.state_dict(row)
        nbytes = sum(one.nbytes for one in state.values())
        with folder.saving_model(client, rank, nbytes) as draft:
            learner.task.save(state, draft, metadata_of(client).to_text())


def _table(
    run_logger: RunLogger,
    summary: Summary,
    final: Mapping[str, float],
    peaks: Sequence[int],
) -> list[tuple[str, str]]:
    """Return the rows (name, value) of the table at the end."""
    rows = [(name, f"{value:.4g}") for name, value in final.items()]
    rows += [
        ("rounds", f"{summary.rounds} in {summary.seconds:.1f} s"),
        ("sent", f"{human_bytes(summary.bytes_sent)} by {len(peaks)} rank(s)"),
        *_client_row(summary),
        ("memory", f"{human_bytes(max(peaks))} on a rank at most"),
    ]
    if summary.keep != "last":
        saved = [one.round for one in summary.per_client if one.round is not None]
        rows.append((f"models kept ({summary.keep})", f"rounds {min(saved)} to {max(saved)}"))
    found = f"{summary.clusters_found} (components of W >= {summary.link_threshold:.2g})"
    rows.append(("clusters found", found))
    match, means = summary.link_accuracy, run_logger.weights_by_truth()
    if match is not None and means is not None and not any(map(math.isnan, means)):
        rows.append(("link accuracy", f"{100 * match:.1f}% of client pairs"))
        scores = f"{summary.link_f1:.2f}, {summary.adjusted_rand:.2f}"
        rows.append(("link F1, adjusted Rand", scores))
        rows.append(("mean W", f"{means[0]:.2f} within clusters, {means[1]:.2f} across"))
    if summary.graph_correlation is not None:
        rows.append(("correlation with the right graph", f"{summary.graph_correlation:.2f}"))
    return rows


def _client_row(summary: Summary) -> list[tuple[str, str]]:
    each = summary.bytes_per_client
    if each is None:
        return []
    up, down = human_bytes(each.up), human_bytes(each.down)
    return [("a client, as a machine", f"{up} up, {down} down")]


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
