"""The coordinator's book: metrics.jsonl, W.npz, TensorBoard, and the eye on the run's health."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.comm.ledger import PURPOSES, TRAINING
from cobo_dist.maths.graph import cluster_match, link_level, means_by_truth

from .folder import RunFolder
from .graph_log import GraphLog
from .health import Concern, Watch
from .progress import Display, Now


class Book:
    """Everything that only rank 0 writes while the run goes on."""

    def __init__(
        self,
        folder: RunFolder,
        display: Display,
        watch: Watch,
        clusters: Sequence[int] | None,
        metrics: Sequence[str],
        tensorboard: bool,
        share: float = 0.0,
        names: Sequence[str] = (),
    ) -> None:
        """Open the files; `share` is one client's equal share where rows of W sum to 1.

        `names` are the clients', where they have any.
        """
        self.folder, self.display, self.watch = folder, display, watch
        self.clusters, self.metrics, self.share = clusters, tuple(metrics), share
        self.names = tuple(names)
        self.graph: GraphLog | None = None
        self.snapshots: dict[int, NDArray[np.float32]] = {}
        self.now = Now()
        self.bytes = dict.fromkeys(PURPOSES, 0)  # of the whole run, all ranks
        self.last_evaluation: list[dict[str, float]] = []
        self._file = (folder.path / "metrics.jsonl").open("w", encoding="utf-8")
        self._board = self._open_board() if tensorboard else None

    def _open_board(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder.path / "tensorboard"))

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
            self._concern(self.watch.after(row["round"], row["loss"], alignments, self.graph))
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

    def weights(self, r: int, weights_nn: NDArray[np.floating]) -> None:
        """Enter a snapshot of W and rewrite W.npz with all snapshots so far."""
        if self.graph is None:
            self.graph = GraphLog(weights_nn, self.share)
        else:
            self.graph.reset(weights_nn)
        self.snapshots[r] = weights_nn.astype(np.float32)
        self.folder.write_weights(
            list(self.snapshots), list(self.snapshots.values()), self.clusters, self.names
        )

    def _concern(self, concerns: Sequence[Concern]) -> None:
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

    def notice(self, message: str) -> None:
        """Enter what the algorithm wants its user to know."""
        if message:
            self._concern([Concern(0, "notice", message)])

    def begin(self) -> None:
        """Look at the settings before the first round."""
        self._concern(self.watch.before())

    def _write(self, row: Mapping[str, Any]) -> None:
        # JSON has no NaN: null stands for a figure that does not exist.
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        self._file.write(json.dumps(clean) + "\n")
        if row["event"] == "round":
            for key, value in clean.items():
                if isinstance(value, (int, float)) and key != "round":
                    self._scalar(f"round/{key}", value, row["round"])

    def _scalar(self, name: str, value: float, r: int) -> None:
        if self._board is not None:
            self._board.add_scalar(name, value, r)

    def ledger(self, peaks: Sequence[int]) -> None:
        """Enter what the whole run sent, by purpose, and the most bytes that each rank held.

        Only here does what logging sent count.
        """
        sent = {f"bytes_{name}": count for name, count in self.bytes.items()}
        self._write({"event": "ledger", **sent, "peak_bytes": list(peaks)})
        self.flush()

    def flush(self) -> None:
        """Put all rows where a reader sees them."""
        self._file.flush()

    # -- the end ----------------------------------------------------------------------------------

    def match(self) -> float | None:
        """Return how well the last W agrees with the true clusters, where they are known."""
        if self.clusters is None or self.graph is None:
            return None
        return cluster_match(self.graph.weights_nn, self.clusters, link_level(self.share))

    def weights_by_truth(self) -> tuple[float, float] | None:
        """Return the last mean weight within and across the true clusters."""
        if self.clusters is None or self.graph is None:
            return None
        return means_by_truth(self.graph.weights_nn, self.clusters)

    def close(self) -> None:
        """Close all files."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        self.display.close()
