"""The logs of rank 0: metrics.jsonl, W.npz, TensorBoard, progress, and the health checks on them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.comm.traffic_counter import PURPOSES, TRAINING
from cobo_dist.formatting import human_bytes
from cobo_dist.maths.participation import Mask
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.maths.weights import Weights
from cobo_dist.storage.disk import SMALL_FILE_BYTES, disk_guard, explain
from cobo_dist.storage.files import open_file
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import (
    FORMAT,
    METRICS_FILE,
    TENSORBOARD_DIR,
    EvalRow,
    FileDigest,
    GpuRow,
    JoinedRow,
    LeftRow,
    LoggerState,
    PlacementRow,
    ProfileRow,
    ProgressState,
    RoundRow,
    Row,
    StartRow,
    TimelineRow,
    TrafficRow,
    WarningRow,
)
from cobo_dist.tracking.graph_stats import GraphStats
from cobo_dist.tracking.health_checks import HealthMonitor
from cobo_dist.tracking.progress import ProgressDisplay
from cobo_dist.tracking.recent_rounds import RecentRounds
from cobo_dist.tracking.weight_snapshots import WeightSnapshots


def mean_of(results: Sequence[Mapping[str, float]], metrics: Sequence[str]) -> dict[str, float]:
    """Return the mean over clients of each metric."""
    return {name: float(np.mean([one[name] for one in results])) for name in metrics}


def digest_of(path: Path, size: int) -> hashlib._Hash:
    """Return the SHA-256 so far of a file's first `size` bytes."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while size and (piece := file.read(min(size, 1 << 20))):
            digest.update(piece)
            size -= len(piece)
    return digest


class RunLogger:
    """Writes the logs of a run, on rank 0."""

    def __init__(
        self,
        folder: RunDir,
        display: ProgressDisplay,
        health: HealthMonitor,
        clusters: Sequence[int] | None,
        metrics: Sequence[str],
        share: float = 0.0,
        names: Sequence[str] = (),
        true_graph: TrueGraph | None = None,
        dtype: str = "float32",
        members: Mask | None = None,
    ) -> None:
        """Open the files.

        Args:
            folder: the run folder.
            display: shows progress.
            health: checks every round.
            clusters: true cluster of each client, if known.
            metrics: what an evaluation gives, the metric that judges last.
            share: one client's equal share where rows of W sum to 1, else 0.
            names: of the clients, if they have any.
            true_graph: how alike clients are, where clusters do not say it.
            dtype: of W in W.npz.
            members: who is in the run in round t = 0 .. T-1; None: all clients, always.
        """
        self._members = members
        self.folder, self.display, self.health = folder, display, health
        self.clusters, self.metrics, self.share = clusters, tuple(metrics), share
        self.graph: GraphStats | None = None
        self.true_graph = true_graph
        self.snapshots = WeightSnapshots(folder, clusters, names, true_graph, dtype)
        self.progress = ProgressState()
        self.bytes = dict.fromkeys(PURPOSES, 0)  # of the whole run, all ranks
        # Of the whole run, all clients; None: begun by an earlier version, which did not count them.
        self.client_bytes: dict[str, int] | None = {"up": 0, "down": 0}
        self.last_evaluation: list[dict[str, float]] = []
        self.seconds_before = 0.0  # of training, before the run was resumed
        self.stopped = ""  # why a callback stopped the run; empty: none did
        self.callback_states: Callable[[], dict[str, dict[str, Any]]] = dict
        self.restored_callbacks: dict[str, dict[str, Any]] = {}  # as the checkpoint had them
        self.recent = RecentRounds()
        self._path = folder.path / METRICS_FILE
        self._file = open_file(self._path, append=True)
        self._written, self._digest = 0, hashlib.sha256()
        self._unflushed = 0  # bytes of rows that may not be in the file yet
        self._board: Any = None
        self._board_lost = ""  # why there is no board any more, until it is a row
        self._scalars: list[tuple[str, float, int]] = []  # not handed to the board yet

    def open_board(self, first: int) -> None:
        """Write TensorBoard files too; earlier entries of rounds after `first` are removed."""
        from torch.utils.tensorboard import SummaryWriter

        purge = first + 1 if first else None
        with self._board_guard():
            self._board = SummaryWriter(str(self.folder.path / TENSORBOARD_DIR), purge_step=purge)

    @contextmanager
    def _board_guard(self) -> Iterator[None]:
        """Guard the use of the board: if the file system refuses, the run goes on without it.

        All its numbers are in metrics.jsonl too.
        """
        try:
            yield
        except OSError as error:
            board, self._board = self._board, None
            self._scalars.clear()
            if board is not None:
                with suppress(OSError):
                    board.close()
            path = self.folder.path / TENSORBOARD_DIR
            why = explain(error, path, SMALL_FILE_BYTES, "make room")
            # A row must not come before the first one, or before those of a checkpoint: `flush` writes it.
            self._board_lost = (
                f"{why}; this run goes on without TensorBoard, and {METRICS_FILE} has all numbers"
            )

    # -- checkpoints ------------------------------------------------------------------------------

    def state(self, seconds: float) -> tuple[LoggerState, dict[str, NDArray[Any]]]:
        """Return what `restore` needs, after `seconds` of training.

        metrics.jsonl is not copied: its size and SHA-256 say which rows belong to the checkpoint.
        """
        self.flush()
        with disk_guard(self._path, self._unflushed):
            os.fsync(self._file.fileno())
        assert self.graph is not None, "weights come before checkpoints"
        state = LoggerState(
            metrics=FileDigest(size=self._written, sha256=self._digest.hexdigest()),
            bytes=self.bytes,
            client_bytes=self.client_bytes,
            seconds=self.seconds_before + seconds,
            last_evaluation=self.last_evaluation,
            progress=self.progress,
            health=self.health.state,
            callbacks=self.callback_states(),
            stopped=self.stopped,
        )
        return state, self.snapshots.state(self.graph.weights)

    def restore(
        self,
        state: LoggerState,
        arrays: Mapping[str, NDArray[Any]],
        version: int = FORMAT,
        symmetric: bool = False,
    ) -> None:
        """Continue from a checkpoint of that format; metrics.jsonl holds its rows and no more.

        `symmetric`: whether W is.
        """
        self._written = state.metrics.size
        self._digest = digest_of(self._path, self._written)
        self.bytes |= state.bytes
        self.client_bytes = state.client_bytes
        self.seconds_before = state.seconds
        self.last_evaluation = state.last_evaluation
        self.progress = state.progress
        self.health.state = state.health
        self.restored_callbacks, self.stopped = state.callbacks, state.stopped
        weights = self.snapshots.restore(arrays)
        weights.symmetric = symmetric
        self.graph = GraphStats(weights, self.share, self.members(self.progress.round))
        if version != FORMAT:
            self._write(StartRow(format=FORMAT))

    def members(self, r: int) -> NDArray[np.bool_] | None:
        """Return who is in the run after round r, [n]; None: all clients are."""
        found_n = None if self._members is None else self._members(max(r - 1, 0))
        return None if found_n is None or found_n.all() else found_n

    # -- rows -------------------------------------------------------------------------------------

    def start(self, notices: Sequence[str]) -> None:
        """Write the first row, notices to the user but empty ones, and warnings about the settings."""
        self._write(StartRow(format=FORMAT))
        for notice in filter(None, notices):
            self.warn(0, "notice", notice)
        self._warn(self.health.before())

    def rounds(
        self,
        rows: Sequence[dict[str, Any]],
        moves: Sequence[Mapping[str, Any]],
        timeline: Sequence[TimelineRow | None],
    ) -> None:
        """Write finished rounds in order, each with the weights it changed and what clients did in it."""
        assert self.graph is not None, "weights come before rounds"
        for row, move, clients_row in zip(rows, moves, timeline, strict=True):
            alignments = move["alignments"]
            if len(move["first"]):
                self.graph.move(move["first"], move["second"], move["weights"])
            row["alignment"] = float(alignments.mean()) if len(alignments) else None
            # A round that replaced all of W did not report single changes.
            figures = self.graph.figures()
            row |= dict.fromkeys(figures) if move["replaced"] else figures
            self._write(RoundRow(**row))
            if clients_row is not None:
                self._write(clients_row)
            self.recent.add(row["round"], row)
            for purpose in TRAINING:
                self.bytes[purpose] += row[f"bytes_{purpose}"]
            self._warn(self.health.after(row["round"], row["loss"], alignments, self.graph))
        self.progress.round = rows[-1]["round"]
        self.progress.loss = rows[-1]["loss"]
        self.progress.pairs = float(np.mean([row["pairs"] for row in rows]))
        self.progress.bytes = float(np.mean([row["bytes_sent"] for row in rows]))
        self.display.update(self.progress)

    def add_client_bytes(self, up: int, down: int) -> None:
        """Add what all clients would have sent and received in one round (`comm.client_traffic`)."""
        if self.client_bytes is not None:
            self.client_bytes["up"] += up
            self.client_bytes["down"] += down

    def evaluation(
        self,
        r: int,
        split: str,
        results: Sequence[dict[str, float]],
        whole: bool,
        model: str = "personal",
    ) -> None:
        """Write one evaluation: a row for each client in the run, and one for their mean.

        `whole`: it was on all of the split. `model`: whose model it was, `personal` or `kept`.
        """
        members_n = self.members(r)
        clients = {
            client: one | {"examples": int(one["examples"])}
            for client, one in enumerate(results)
            if members_n is None or members_n[client]
        }
        mean = mean_of(list(clients.values()), self.metrics)
        total = mean | {"examples": sum(one["examples"] for one in clients.values())}
        for client, one in [*clients.items(), (None, total)]:
            row = {"round": r, "client": client, "split": split, "model": model}
            self._write(EvalRow.model_validate(row | {"whole": whole} | one))
        if split == "test":
            self.last_evaluation = list(results)
            name = self.metrics[-1]
            self.progress.metric = f"test {name} {mean[name]:.4g}"
        for name, value in total.items():
            self._scalar(
                f"{split}/{name}" if model == "personal" else f"{model} {split}/{name}", value, r
            )
        if model == "personal":
            self.recent.add(r, {f"{split}/{name}": value for name, value in mean.items()})

    def weights(self, r: int, weights: Weights) -> None:
        """Write a snapshot of W, all n rows, into W.npz."""
        self.snapshots.add(r, self.regraph(r, weights))

    def regraph(self, r: int, weights: Weights) -> Weights:
        """Let the graph be W after round r, all n rows; return it without the weights of absent clients."""
        members_n = self.members(r)
        if members_n is not None:
            weights = weights.among(members_n)
        if self.graph is None:
            self.graph = GraphStats(weights, self.share, members_n)
        else:
            self.graph.reset(weights, members_n)
        return weights

    def joined_or_left(self, row: JoinedRow | LeftRow) -> None:
        """Write and print that a client joined or left."""
        self._write(row)
        what = "left" if isinstance(row, LeftRow) else f"joined ({row.start})"
        self.display.print(f"round {row.round}: client {row.client} {what}")

    def profile(self, r: int, seconds: Mapping[str, Sequence[float]]) -> None:
        """Write where the time of round r went: seconds by kind, on each rank."""
        rounded = {kind: [round(one, 6) for one in ranks] for kind, ranks in seconds.items()}
        self._write(ProfileRow(round=r, seconds=rounded))

    def gpus(self, r: int, status: Mapping[str, Sequence[float]]) -> None:
        """Write what the ranks' GPUs said after round r, by name (`gpu_status.STATUS`)."""
        self._write(GpuRow.model_validate({"round": r, **status}))

    def placement(self, row: PlacementRow) -> None:
        """Write that clients moved to other ranks."""
        self._write(row)
        self.bytes["moving"] += row.bytes
        self.display.print(
            f"round {row.round}: {row.clients} clients moved to other ranks "
            f"({human_bytes(row.bytes)}): mixing sends {row.models_after} models a round, down from "
            f"{row.models_before}"
        )

    def warn(self, r: int, kind: str, message: str) -> None:
        """Write and print one warning."""
        self._warn([WarningRow(round=r, kind=kind, message=message)])

    def _warn(self, warnings: Sequence[WarningRow]) -> None:
        for row in warnings:
            self._write(row)
            self.display.print(f"warning (round {row.round}): {row.message}")

    def _write(self, row: Row) -> None:
        line = (row.to_json() + "\n").encode()
        self._unflushed += len(line)
        with disk_guard(self._path, self._unflushed):
            self._file.write(line)
        self._written += len(line)
        self._digest.update(line)
        if isinstance(row, RoundRow):
            for key, value in row:
                if key != "round":
                    self._scalar(f"round/{key}", value, row.round)

    def _scalar(self, name: str, value: object, r: int) -> None:
        """Keep a number for TensorBoard until `flush`: its writer writes whenever it likes."""
        if self._board is not None and isinstance(value, (int, float)) and math.isfinite(value):
            self._scalars.append((name, value, r))

    def traffic(self, peaks: Sequence[int]) -> None:
        """Write what the whole run sent, by purpose, and the most bytes that each rank held."""
        sent = {f"bytes_{name}": count for name, count in self.bytes.items()}
        self._write(TrafficRow.model_validate(sent | {"peak_bytes": list(peaks)}))
        self.flush()

    def flush(self) -> None:
        """Hand all rows to the file system, where a reader sees them.

        Raises:
            RunFailure: the disk is full, or another run took the folder.
        """
        self.folder.check_owner()
        if self._board is not None:
            with self._board_guard():
                for scalar in self._scalars:
                    self._board.add_scalar(*scalar)
                self._scalars.clear()
                self._board.flush()
        if self._board_lost:
            message, self._board_lost = self._board_lost, ""
            self.warn(self.progress.round, "tensorboard", message)
        with disk_guard(self._path, self._unflushed):
            self._file.flush()
        self._unflushed = 0

    # -- the end ----------------------------------------------------------------------------------

    def weights_by_truth(self) -> tuple[float, float] | None:
        """Return the last mean weights within and across the true clusters; None if unknown."""
        if self.clusters is None or self.graph is None:
            return None
        return self.graph.means_by_truth(self.clusters)

    def close(self) -> None:
        """Close all files."""
        with suppress(OSError):  # a full disk, which was reported when the row was written
            self._file.close()
        if self._board is not None:
            with suppress(OSError):
                self._board.close()
        self.display.close()
