"""The end of a run that has done its rounds: its models, its summary and the table printed last."""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cobo_dist.comm.session import Session
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.errors import EXIT_DONE
from cobo_dist.formatting import human_bytes
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import (
    FORMAT,
    MODEL_FILE,
    SUMMARY_FILE,
    BytesPerClient,
    ClientResult,
    ModelRecord,
    Summary,
)
from cobo_dist.tracking.progress import final_table
from cobo_dist.tracking.run_logger import RunLogger, mean_of
from cobo_dist.training.learner import Learner
from cobo_dist.training.model_metadata import model_metadata
from cobo_dist.training.trainer import Trainer


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
    if learner.task.truth.switches:  # clients know labels otherwise than at the start
        folder.write_record(MODEL_FILE, ModelRecord(format=FORMAT, **learner.task.model_facts()))
    summary = _summary(trainer, run_logger, algorithm, len(peaks), rounds_n1)
    if placement is not None:
        summary.placement = placement
    run_logger.traffic(peaks)
    folder.write_record(SUMMARY_FILE, summary)
    folder.write_status(EXIT_DONE, "done", trainer.stopped_early)
    run_logger.display.close()
    if trainer.stopped_early:
        print(trainer.stopped_early, flush=True)
    final_table(_table(run_logger, summary, peaks), ("final (mean of clients, test)", "value"))
    print(f"run folder  {folder.path}", flush=True)
    return EXIT_DONE


def _summary(
    trainer: Trainer,
    run_logger: RunLogger,
    algorithm: str,
    ranks: int,
    rounds_n1: NDArray[np.floating] | None,
) -> Summary:
    """Return the results of the run; `rounds_n1`: those of the kept models, None for the last."""
    learner = trainer.learner
    results, graph = run_logger.last_evaluation, run_logger.graph
    assert graph is not None, "W is logged before round 1"
    cluster_n = graph.clusters_found()
    members_n = run_logger.members(trainer.last)
    in_run = [members_n is None or bool(members_n[client]) for client in range(len(results))]
    summary = Summary(
        format=FORMAT,
        task=learner.task.name,
        algorithm=algorithm,
        seed=trainer.schedule.seed,
        rounds=trainer.last,
        clients=len(results),
        ranks=ranks,
        seconds=round(trainer.seconds + run_logger.seconds_before, 3),
        bytes_sent=sum(run_logger.bytes[purpose] for purpose in (*TRAINING, "moving")),
        bytes_per_client=_bytes_per_client(run_logger, len(results)),
        keep=trainer.keeper.rule,
        final=dict(mean_of(list(compress(results, in_run)), learner.task.metrics)),
        numbers=dict(run_logger.numbers),
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
    ).model_copy(update=run_logger.agreement())
    if (timing := learner.clients.participation.timing) is not None and trainer.last:
        summary.virtual_seconds = timing.at(trainer.last - 1).seconds
    return summary


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


def _table(run_logger: RunLogger, summary: Summary, peaks: Sequence[int]) -> list[tuple[str, str]]:
    """Return the rows (name, value) of the table at the end."""
    rows = [(name, f"{value:.4g}") for name, value in summary.final.items()]
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
