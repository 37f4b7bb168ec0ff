"""The coordinator's book: metrics.jsonl, W.npz, TensorBoard, and the eye on the run's health."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.comm.traffic_counter import PURPOSES, TRAINING
from cobo_dist.formatting import human_bytes
from cobo_dist.maths.graph import cluster_match, link_threshold, means_by_truth
from cobo_dist.maths.weights import Weights
from cobo_dist.storage.disk import writing
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tracking.graph_stats import GraphStats
from cobo_dist.tracking.health_checks import HealthMonitor, HealthWarning
from cobo_dist.tracking.progress import Display, Now
from cobo_dist.tracking.weight_snapshots import WeightSnapshots

METRICS = "metrics.jsonl"


def digest_of(path: Path, size: int) -> hashlib._Hash:
    """Return the SHA-256 so far of a file's first `size` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size and (piece := file.read(min(size, 1 << 20))):
            digest.update(piece)
            size -= len(piece)
    return digest


class RunLogger:
    """Everything that only rank 0 writes while the run goes on."""

    def __init__(
        self,
        folder: RunDir,
        display: Display,
        health: HealthMonitor,
        clusters: Sequence[int] | None,
        metrics: Sequence[str],
        share: float = 0.0,
        names: Sequence[str] = (),
    ) -> None:
        """Open the files; `share` is one client's equal share where rows of W sum to 1.

        `names` are the clients', where they have any.
        """
        self.folder, self.display, self.health = folder, display, health
        self.clusters, self.metrics, self.share = clusters, tuple(metrics), share
        self.graph: GraphStats | None = None
        self.snapshots = WeightSnapshots(folder, clusters, names)
        self.now = Now()
        self.bytes = dict.fromkeys(PURPOSES, 0)  # of the whole run, all ranks
        self.last_evaluation: list[dict[str, float]] = []
        self.seconds_before = 0.0  # of training, before this run was resumed
        self._path = folder.path / METRICS
        self._file = self._path.open("ab")
        self._written, self._digest = 0, hashlib.sha256()
        self._unflushed = 0  # bytes of rows that may not be in the file yet
        self._board: Any = None

    def open_board(self, first: int) -> None:
        """Write TensorBoard's files too; what earlier ones say of rounds after `first` goes."""
        from torch.utils.tensorboard import SummaryWriter

        purge = first + 1 if first else None
        self._board = SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=purge)

    # -- to be resumed ----------------------------------------------------------------------------

    def state(self, seconds: float) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return what a later run needs to go on with this book, after `seconds` of training.

        metrics.jsonl itself stays where it is: its length so far and SHA-256 say what belongs to it.
        """
        self.flush()
        with writing(self._path, self._unflushed):
            os.fsync(self._file.fileno())
        assert self.graph is not None, "weights come before checkpoints"
        content = {
            "metrics": {"size": self._written, "sha256": self._digest.hexdigest()},
            "bytes": self.bytes,
            "seconds": self.seconds_before + seconds,
            "last_evaluation": self.last_evaluation,
            "now": self.now.__dict__,
            "watch": self.health.state(),
        }
        return content, self.snapshots.state(self.graph.weights)

    def restore(self, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on as the book that left this state; metrics.jsonl holds its rows and no more."""
        self._written = content["metrics"]["size"]
        self._digest = digest_of(self.folder.path / METRICS, self._written)
        self.bytes |= content["bytes"]
        self.seconds_before = content["seconds"]
        self.last_evaluation = content["last_evaluation"]
        self.now = Now(**content["now"])
        self.health.restore(content["watch"])
        self.graph = GraphStats(self.snapshots.restore(arrays), self.share)

    # -- rows -------------------------------------------------------------------------------------

    def rounds(self, rows: Sequence[dict[str, Any]], moves: Sequence[Mapping[str, Any]]) -> None:
        """Enter finished rounds in order, each with the weights it moved."""
        assert self.graph is not None, "weights come before rounds"
        for row, move in zip(rows, moves, strict=True):
            alignments = move["alignments"]
            if len(move["first"]):
                self.graph.move(move["first"], move["second"], move["weights"])
            row["alignment"] = float(alignments.mean()) if len(alignments) else None
            # Between snapshots nothing is known of a W that was replaced as a whole.
            figures = self.graph.figures()
            row |= dict.fromkeys(figures) if move["replaced"] else figures
            self._write({"event": "round", **row})
            for purpose in TRAINING:
                self.bytes[purpose] += row[f"bytes_{purpose}"]
            self._concern(self.health.after(row["round"], row["loss"], alignments, self.graph))
        self.now.round = rows[-1]["round"]
        self.now.loss = rows[-1]["loss"]
        self.now.pairs = float(np.mean([row["pairs"] for row in rows]))
        self.now.bytes = float(np.mean([row["bytes_sent"] for row in rows]))
        self.display.update(self.now)

    def evaluation(
        self, r: int, split: str, results: Sequence[dict[str, float]], whole: bool
    ) -> None:
        """Enter one evaluation: a row for each client and one for their mean.

        A row says which model was evaluated, on how many examples, and whether those are all.
        """
        mean = {name: float(np.mean([one[name] for one in results])) for name in self.metrics}
        about = {"split": split, "model": "personal", "whole": whole}
        for client, one in enumerate(results):
            one = one | {"examples": int(one["examples"])}
            self._write({"event": "eval", "round": r, "client": client, **about, **one})
        mean["examples"] = sum(int(one["examples"]) for one in results)
        self._write({"event": "eval", "round": r, "client": None, **about, **mean})
        if split == "test":
            self.last_evaluation = list(results)
            name = self.metrics[-1]
            self.now.metric = f"test {name} {mean[name]:.4g}"
        for name, value in mean.items():
            self._scalar(f"{split}/{name}", value, r)

    def weights(self, r: int, weights: Weights) -> None:
        """Enter a snapshot of W, all n rows, into W.npz too."""
        if self.graph is None:
            self.graph = GraphStats(weights, self.share)
        else:
            self.graph.reset(weights)
        self.snapshots.add(r, weights)

    def _concern(self, concerns: Sequence[HealthWarning]) -> None:
        for concern in concerns:
            self._write(
                {
                    "event": "warning",
                    "round": concern.round,
                    "kind": concern.kind,
                    "message": concern.message,
                }
            )
            self.display.say(f"warning (round {concern.round}): {concern.message}")

    def profile(self, r: int, seconds: Mapping[str, Sequence[float]]) -> None:
        """Enter where round r's time went: seconds by kind, on each rank."""
        rounded = {kind: [round(one, 6) for one in ranks] for kind, ranks in seconds.items()}
        self._write({"event": "profile", "round": r, "seconds": rounded})

    def moved(self, r: int, row: Mapping[str, Any], moved: int) -> None:
        """Enter that clients changed rank after round r, in parcels of `moved` bytes in all."""
        self._write({"event": "placement", "round": r, **row})
        self.bytes["moving"] += moved
        self.display.say(
            f"round {r}: {row['clients']} clients moved to other ranks ({human_bytes(moved)}): mixing "
            f"sends {row['models_after']} models a round, down from {row['models_before']}"
        )

    def warn(self, r: int, kind: str, message: str) -> None:
        """Enter what went wrong with something that the run can do without."""
        self._concern([HealthWarning(r, kind, message)])

    def notice(self, message: str) -> None:
        """Enter what the algorithm wants its user to know."""
        if message:
            self._concern([HealthWarning(0, "notice", message)])

    def begin(self) -> None:
        """Look at the settings before the first round."""
        self._concern(self.health.before())

    def _write(self, row: Mapping[str, Any]) -> None:
        # JSON has no NaN: null stands for a figure that does not exist.
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        line = (json.dumps(clean) + "\n").encode()
        self._unflushed += len(line)
        with writing(self._path, self._unflushed):
            self._file.write(line)
        self._written += len(line)
        self._digest.update(line)
        if row["event"] == "round":
            for key, value in clean.items():
                if isinstance(value, (int, float)) and key != "round":
                    self._scalar(f"round/{key}", value, row["round"])

    def _scalar(self, name: str, value: float, r: int) -> None:
        if self._board is not None:
            self._board.add_scalar(name, value, r)

    def traffic(self, peaks: Sequence[int]) -> None:
        """Enter what the whole run sent, by purpose, and the most bytes that each rank held.

        Only here does what logging sent count.
        """
        sent = {f"bytes_{name}": count for name, count in self.bytes.items()}
        self._write({"event": "ledger", **sent, "peak_bytes": list(peaks)})
        self.flush()

    def flush(self) -> None:
        """Put all rows where a reader sees them.

        Raises:
            RunFailure: the disk is full.
        """
        with writing(self._path, self._unflushed):
            self._file.flush()
        self._unflushed = 0

    # -- the end ----------------------------------------------------------------------------------

    def match(self) -> float | None:
        """Return how well the last W agrees with the true clusters, where they are known."""
        if self.clusters is None or self.graph is None:
            return None
        return cluster_match(self.graph.weights, self.clusters, link_threshold(self.share))

    def weights_by_truth(self) -> tuple[float, float] | None:
        """Return the last mean weight within and across the true clusters."""
        if self.clusters is None or self.graph is None:
            return None
        return means_by_truth(self.graph.weights, self.clusters)

    def close(self) -> None:
        """Close all files."""
        with suppress(OSError):  # of rows that a full disk did not take: that was said by now
            self._file.close()
        if self._board is not None:
            self._board.close()
        self.display.close()
