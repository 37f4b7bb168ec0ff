"""Collects the metrics of rounds on every rank, and brings those of several rounds to rank 0 at once.

There is one gather for `log.flush_every` rounds, so logging adds no message to most rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from cobo_dist import gpu_status
from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import RoundResult
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.errors import RunFailure
from cobo_dist.phase_timer import PHASES
from cobo_dist.tasks.base import Task
from cobo_dist.tracking.run_logger import RunLogger
from cobo_dist.tracking.virtual_time import round_figures, timeline_row
from cobo_dist.tracking.weight_snapshots import gather_weights, joined

Arrays = dict[str, NDArray[Any]]
_MOVES = ("first", "second", "weights", "alignments")

SIGNAL_POLL_SECONDS = 1.0
"""The longest time between two flushes, in which ranks learn of each other's signals; at least one round."""


@dataclass(frozen=True)
class StepDecision:
    """What all ranks do after a flush: stop for a signal (0: none), commit the checkpoint that all wrote."""

    signal: int = 0
    commit: bool = False


class MetricsBuffer:
    """The metrics of the rounds since the last flush, on one rank."""

    def __init__(
        self,
        exchange: Exchange,
        clients: ClientBatch,
        task: Task,
        algorithm: Algorithm,
        run_logger: RunLogger | None,
        flush_every: int,
        first: int = 0,
        profiles: bool = False,
    ) -> None:
        """Start after round `first`.

        Args:
            exchange: carries the metrics, and counts what training sends.
            clients: are evaluated and checked.
            task: names the metrics.
            algorithm: has the rows of W of this rank.
            run_logger: writes the logs; None on all ranks but 0.
            flush_every: the most rounds between two flushes.
            first: the round after which the run starts.
            profiles: whether to log where the time of each round went.
        """
        self.timer, self.profiles = exchange.timer, profiles
        self.flush_every = flush_every
        self._due = first + 1  # the first flush measures how long a round takes
        self.exchange, self.clients, self.task = exchange, clients, task
        self.algorithm, self.run_logger = algorithm, run_logger
        self._pending: list[tuple[dict[str, Any], Arrays]] = []
        self._losses: list[Tensor] = []  # of the pending rounds, on the device
        self._seconds: list[Callable[[], float]] = []
        self._graphs_given_up = (
            clients.graphs_given_up()
        )  # env.json says so of a start without them
        self._seen = exchange.traffic.training()
        self._seen_of_clients = exchange.client_traffic.totals()

    def round(self, r: int, outcome: RoundResult, seconds: Callable[[], float]) -> None:
        """Add the results of round r.

        Losses stay on the device, and `seconds` is not asked, until the next flush: on a GPU both wait for
        the round's work.
        """
        sent = self.exchange.traffic.training()
        of_clients = self.exchange.client_traffic.totals()
        arrays: Arrays = {
            "traffic": np.subtract(sent, self._seen),
            "client_bytes": np.subtract(of_clients, self._seen_of_clients),
        }
        if self.exchange.is_asynchronous:
            arrays["staleness"] = np.array(self.exchange.staleness())
        self._seen, self._seen_of_clients = sent, of_clients
        for name in _MOVES:
            parts = [getattr(selection, name) for selection in outcome.selections]
            arrays[name] = np.concatenate(parts) if parts else np.empty(0)
        if self.profiles:
            seconds_of = self.timer.take()  # with the logging of the round before
            arrays["profile"] = np.array([seconds_of[kind] for kind in PHASES])
        if self.task.diagnoses:
            # A copy: the models change before the next flush.
            arrays["models"] = self.clients.x_cd.double().cpu().numpy().copy()
        row: dict[str, Any] = {
            "round": r,
            "pairs": outcome.pairs,
            "met": outcome.met_m2,
            "replaced": outcome.weights_replaced,
            "numbers": dict(outcome.numbers),
        }
        self._pending.append((row, arrays))
        self._losses.append(outcome.losses_c.double())
        self._seconds.append(seconds)

    def is_due(self, r: int) -> bool:
        """Return whether all ranks must flush after round r."""
        return r >= self._due

    def flush(self, signal: int = 0, written: bool = False) -> StepDecision:
        """Gather the pending rounds on rank 0; end all ranks together if a model diverged.

        Args:
            signal: one that asked this rank to stop; 0: none.
            written: whether this rank has written its part of a checkpoint.

        Returns:
            What all ranks do now: stop if any has a signal, commit if all have written.

        Raises:
            RunFailure: the same on all ranks: a client's loss became NaN or infinite.
        """
        if not self._pending:
            return StepDecision()
        losses = torch.stack(self._losses).cpu().numpy()
        for (row, arrays), losses_c, seconds_of in zip(
            self._pending, losses, self._seconds, strict=True
        ):
            arrays["losses"], row["seconds"] = losses_c, seconds_of()
        bundle = {
            f"{number}.{name}": np.ascontiguousarray(array)
            for number, (_, arrays) in enumerate(self._pending)
            for name, array in arrays.items()
        }
        pending, self._pending, self._losses, self._seconds = self._pending, [], [], []
        own = {row["round"]: row for row, _ in pending}
        last = max(own)
        bundle["rounds"] = np.array(list(own))
        bundle["state"] = np.array([signal, written])
        if self.clients.device.type == "cuda":
            bundle["gpu"] = np.array(gpu_status.status(self.clients.device))
        answer: list[Any] = []

        def collected(records: list[bytes]) -> None:
            answer.extend(self._write([load(record) for record in records], own))

        self.exchange.collect(save(bundle), collected)
        if not self.exchange.in_step:  # nobody waits for rank 0's answer, which comes when it can
            self._due = last + self.flush_every - last % self.flush_every
            return StepDecision()
        record = self.exchange.transport.broadcast(json.dumps(answer).encode())
        failure, signal, commit, rounds = json.loads(record)
        if self.exchange.is_asynchronous:  # all ranks know the next one
            rounds = self.flush_every - last % self.flush_every
        self._due = last + rounds
        if failure:
            raise RunFailure(failure)
        return StepDecision(signal, commit)

    def _write(self, ranks: list[Arrays], own: Mapping[int, dict[str, Any]]) -> list[Any]:
        """Log the rounds of all ranks, of which `own` are rank 0's; return what ranks must know.

        That is a failure, a signal, whether all have written their part, and the rounds until the next flush.

        Raises:
            RunFailure: there is a failure, and no rank waits for the answer.
        """
        assert self.run_logger is not None
        states = np.array([record.pop("state") for record in ranks])
        self._warn_of_engine(max(own))
        gpus = [record.pop("gpu") for record in ranks if "gpu" in record]
        failure = self._log(ranks, own)
        if failure and not self.exchange.in_step:
            raise RunFailure(failure)
        if gpus:
            named = zip(gpu_status.STATUS, np.array(gpus).T.tolist(), strict=True)
            self.run_logger.gpus(max(own), dict(named))
        seconds = float(np.mean([row["seconds"] for row in own.values()]))
        rounds = max(1, min(self.flush_every, int(SIGNAL_POLL_SECONDS / max(seconds, 1e-9))))
        return [failure, int(states[:, 0].max()), bool(states[:, 1].all()), rounds]

    def check_models(self, r: int, last: bool) -> None:
        """Check that all models, and at the last round all losses, are finite.

        The losses of a round are those of the models before it, so models are checked before they are saved.

        Raises:
            RunFailure: the same on all ranks: one is not.
        """
        # Row by row: a mask of all models would take a quarter of their memory. Read at once.
        finite_c = (
            torch.stack([row_d.isfinite().all() for row_d in self.clients.x_cd]).cpu().numpy()
        )
        gathered = self.exchange.gather_rows(finite_c[:, None].astype(np.float32))
        failure = ""
        if gathered is not None and not gathered.all():
            failure = self._diverged("model", int(gathered[:, 0].argmin()), "non-finite", r)
        if self.run_logger is not None and last and not failure:
            losses = [one["loss"] for one in self.run_logger.last_evaluation]
            bad = next((i for i, loss in enumerate(losses) if not np.isfinite(loss)), None)
            if bad is not None:
                failure = self._diverged("loss", bad, losses[bad], r)
        if failure := self.exchange.transport.broadcast(failure.encode()).decode():
            raise RunFailure(failure)

    def _diverged(self, what: str, client: int, value: object, r: int) -> str:
        keys = ("optimizer.lr", *self.algorithm.config.step_keys)
        return (
            f"the {what} of client {client} became {value} in round {r}; lower {' or '.join(keys)} "
            f"(optimizer.lr is now {self.clients.lr:g})"
        )

    def _log(self, ranks: list[Arrays], own: Mapping[int, dict[str, Any]]) -> str:
        """Write the rounds of all ranks; return why the run must end, empty if it need not.

        Ranks that go at their own pace leave out rounds, in which their clients then did not take part.
        """
        assert self.run_logger is not None
        rows, moves, timeline, failure = [], [], [], ""
        by_round = [_by_round(rank) for rank in ranks]
        for r in sorted(set().union(*by_round)):
            row = own.get(r) or _round_of_others(r)
            parts = {rank: found[r] for rank, found in enumerate(by_round) if r in found}
            losses_n, part_n = self._losses_of(r, parts)
            traffic = np.sum([part["traffic"] for part in parts.values()], axis=0)
            row |= {"messages": int(traffic[0]), "bytes_sent": int(traffic[1:].sum())}
            row |= {f"bytes_{p}": int(b) for p, b in zip(TRAINING, traffic[1:], strict=True)}
            row |= round_figures(self.clients.participation, r - 1)
            bad = np.flatnonzero(~np.isfinite(losses_n) & part_n)
            skips = self.clients.skips_bad
            if skips:
                row["skipped"] = len(bad)
                self._warn_of_skipped(r, bad)
            counted = losses_n[part_n & np.isfinite(losses_n)] if skips else losses_n[part_n]
            row["loss"] = float(counted.mean()) if len(counted) else float("nan")
            if self.task.diagnoses and len(parts) == len(ranks):
                models = [part["models"] for part in parts.values()]
                row |= self.task.diagnose(self.exchange.placement.in_client_order(models), r)
            if self.profiles and len(parts) == len(ranks):
                profiles = np.array([part["profile"] for part in parts.values()]).T.tolist()
                self.run_logger.profile(r, dict(zip(PHASES, profiles, strict=True)))
            up, down = np.sum([part["client_bytes"] for part in parts.values()], axis=0).tolist()
            self.run_logger.add_client_bytes(up, down)
            timing, met_m2 = self.clients.participation.timing, row.pop("met")
            timeline.append(timeline_row(timing, r - 1, met_m2))
            move = {n: np.concatenate([part[n] for part in parts.values()]) for n in _MOVES}
            move |= {name: move[name].astype(np.int64) for name in ("first", "second")}
            if self.exchange.is_asynchronous:
                ages = np.array([part["staleness"] for part in parts.values()])
                row |= {"staleness_mean": ages[:, 0].mean(), "staleness_max": int(ages[:, 1].max())}
                row |= {"pairs": len(move["alignments"]), "clients": int(part_n.sum())}
            rows.append(row)
            moves.append({"replaced": row.pop("replaced")} | move)
            if len(bad) and not skips:  # later rounds have no meaning
                failure = self._diverged("loss", int(bad[0]), losses_n[bad[0]], r)
                break
        self.run_logger.rounds(rows, moves, timeline)
        self.run_logger.flush()
        return failure

    def _losses_of(
        self, r: int, parts: Mapping[int, Arrays]
    ) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        """Return the losses of all clients in round r, [n], and who took part; `parts` are of ranks."""
        placement = self.exchange.placement
        of_ranks = [
            parts[rank]["losses"] if rank in parts else np.full(len(ids), np.nan)
            for rank, ids in enumerate(placement.by_rank)
        ]
        part_n = self.clients.participation(r - 1) & np.isin(placement.owner_n, list(parts))
        return placement.in_client_order(of_ranks), part_n

    def _warn_of_engine(self, r: int) -> None:
        why, before = self.clients.graphs_given_up(), self._graphs_given_up
        self._graphs_given_up = why
        if why and not before and self.run_logger is not None:
            line = f"passes are no longer replayed as CUDA graphs, so rounds take longer: {why}"
            self.run_logger.warn(r, "engine", line)

    def _warn_of_skipped(self, r: int, bad: NDArray[np.int64]) -> None:
        assert self.run_logger is not None
        reported = self.run_logger.health.state.skipped
        for client in sorted(set(bad.tolist()) - set(reported)):
            reported.append(client)
            self.run_logger.warn(
                r, "skipped",
                f"the loss or gradient of client {client} is not finite in round {r}: its gradient "
                "counts as 0 (run.on_nan=skip_client); reported once for a client, and rows "
                "count it as `skipped`",
            )  # fmt: skip

    def evaluate(
        self, r: int, splits: tuple[str, ...], *, whole: bool, model: str = "personal"
    ) -> dict[str, list[dict[str, float]]]:
        """Evaluate every client, on all its data or on a part of it, and log the results.

        `model`: whose model it is, for the rows. Returns the results of this rank's clients by split.
        """
        names = (*self.task.metrics, "examples")
        own = {split: self.clients.evaluate(split, whole) for split in splits}
        for split, mine in own.items():
            numbers_cm = np.array([[one[n] for n in names] for one in mine])
            collected = partial(self._evaluated, r, split, whole, model, names)
            self.exchange.collect(np.ascontiguousarray(numbers_cm).tobytes(), collected)
        return own

    def _evaluated(
        self,
        r: int,
        split: str,
        whole: bool,
        model: str,
        names: Sequence[str],
        records: list[bytes],
    ) -> None:
        assert self.run_logger is not None
        parts = [np.frombuffer(record).reshape(-1, len(names)) for record in records]
        numbers_nm = self.exchange.placement.in_client_order(parts)
        results = [dict(zip(names, row, strict=True)) for row in numbers_nm.tolist()]
        self.run_logger.evaluation(r, split, results, whole, model)
        self.run_logger.flush()

    def weights(self, r: int) -> None:
        """Log a snapshot of W."""
        weights = self.algorithm.weights

        def collected(records: list[bytes]) -> None:
            assert self.run_logger is not None
            self.run_logger.weights(r, joined(self.exchange, weights, records))

        self.exchange.collect(save(weights.arrays()), collected)

    def members_changed(self, t: int) -> None:
        """Let the graph of links be that of the clients in the run in round t."""
        whole, _ = gather_weights(self.exchange, self.algorithm.weights)
        if self.run_logger is not None and whole is not None:
            self.run_logger.regraph(t + 1, whole)


def _round_of_others(r: int) -> dict[str, Any]:
    """Return the row of a round that rank 0 left out."""
    return {
        "round": r, "seconds": None, "pairs": 0, "met": None, "replaced": False, "numbers": {}
    }  # fmt: skip


def _by_round(record: Arrays) -> dict[int, Arrays]:
    """Return the arrays of each round that a rank took, from its record."""
    rounds = record["rounds"].tolist()
    found: dict[int, Arrays] = {r: {} for r in rounds}
    for name, array in record.items():
        number, _, kind = name.partition(".")
        if kind:
            found[rounds[int(number)]][kind] = array
    return found
