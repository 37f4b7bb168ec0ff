"""The snapshots of W that a run keeps, in W.npz, and rows of W as checkpoints keep them.

Up to `WRITTEN_OUT` clients weights are written out: `rounds` [k], `weights` [k, n, n], all of them again
with each snapshot; in a checkpoint a row has n numbers. Beyond that W is kept as `maths.weights` has it: a
snapshot adds to W.npz what is listed then, and a row in a checkpoint names its most common weight and the
others.

Shapes: n clients, k snapshots, m entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from cobo_dist.comm.exchange import Exchange
from cobo_dist.maths.weights import Weights, join
from cobo_dist.storage.checkpoint_format import Damaged
from cobo_dist.storage.run_dir import RunDir

WRITTEN_OUT = 512
"""The most clients whose W is written out: a snapshot of so many is 1 MiB."""

Arrays = dict[str, NDArray[Any]]
_LISTS = ("groups", "level", "apart", "counts", "columns", "values")


class WeightSnapshots:
    """W.npz of a run folder."""

    def __init__(
        self, folder: RunDir, clusters: Sequence[int] | None, names: Sequence[str]
    ) -> None:
        """Begin without any; `clusters` and `names` are the clients', where they are known."""
        self.folder, self.clusters, self.names = folder, clusters, tuple(names)
        self._dense: dict[int, NDArray[np.float32]] = {}

    def add(self, r: int, weights: Weights) -> None:
        """Keep W after round r, and put it where a reader finds it."""
        if weights.shape[1] <= WRITTEN_OUT:
            self._dense[r] = weights.dense().astype(np.float32)
            self._write()
        else:
            lists = _lists(weights) | {"values": weights.arrays()["values"].astype(np.float32)}
            self.folder.append_weights(r, lists, self.clusters, self.names)

    def _write(self) -> None:
        kept = self._dense
        self.folder.write_weights(list(kept), list(kept.values()), self.clusters, self.names)

    def state(self, weights: Weights) -> Arrays:
        """Return what a checkpoint keeps: all snapshots, and W as the coordinator has it now."""
        if weights.shape[1] <= WRITTEN_OUT:
            return {
                "rounds": np.asarray(list(self._dense), dtype=np.int64),
                "weights": np.stack(list(self._dense.values())),
                "graph": weights.dense(),
            }
        file = np.frombuffer(self.folder.read_weights(), dtype=np.uint8)
        return {"file": file} | {f"graph.{name}": one for name, one in _lists(weights).items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> Weights:
        """Go on with a checkpoint's snapshots, and return the W beside them."""
        if "file" in arrays:
            self.folder.replace_weights(arrays["file"].tobytes())
            return _from_lists({name: arrays[f"graph.{name}"] for name in _LISTS})
        graph = arrays["graph"]
        if len(graph) <= WRITTEN_OUT:
            self._dense = dict(zip(arrays["rounds"].tolist(), arrays["weights"], strict=True))
            self._write()
        else:  # of a program that wrote all W out
            for r, weights in zip(arrays["rounds"].tolist(), arrays["weights"], strict=True):
                self.add(r, Weights.of_rows(range(len(graph)), weights))
        return Weights.of_rows(range(len(graph)), graph)


def is_state(arrays: Mapping[str, NDArray[Any]], n: int) -> bool:
    """Return whether arrays are what `Snapshots.state` leaves of n clients."""
    if "file" not in arrays:
        k = len(arrays.get("rounds", ()))
        shapes = {"rounds": (k,), "weights": (k, n, n), "graph": (n, n)}
        return {name: array.shape for name, array in arrays.items()} == shapes
    lists = {name: arrays.get(f"graph.{name}") for name in _LISTS}
    if len(arrays) != 1 + len(_LISTS) or any(one is None for one in lists.values()):
        return False
    counts, columns = arrays["graph.counts"], arrays["graph.columns"]
    m = int(counts.sum())
    shapes = {
        "groups": (n,),
        "level": (1,),
        "apart": (n,),
        "counts": (n,),
        "columns": (m,),
        "values": (m,),
    }
    return all(
        one is not None and one.shape == shapes[name] for name, one in lists.items()
    ) and bool(((columns >= 0) & (columns < n)).all())


def _lists(weights: Weights) -> Arrays:
    level = np.array([weights.level], dtype=np.float64)
    return {"groups": weights.groups_n, "level": level} | weights.arrays()


def _from_lists(lists: Arrays) -> Weights:
    ids = np.arange(len(lists["groups"]))
    none = Weights(ids, lists["groups"], float(lists["level"][0]), lists["values"].dtype.type)
    return none.with_arrays(ids, lists)


def gather_weights(
    exchange: Exchange, weights: Weights, purpose: str = "logging"
) -> tuple[Weights | None, int]:
    """Bring all rows of W to the coordinator; return them there, and the bytes that all others sent."""
    records = exchange.gather(save(weights.arrays()), purpose)
    if not records:
        return None, 0
    parts = [
        weights.with_arrays(ids, load(one))
        for ids, one in zip(exchange.placement.by_rank, records, strict=True)
    ]
    return join(parts), sum(map(len, records[1:]))


# -- rows in checkpoints -----------------------------------------------------------------------------


def row_tensors(weights: Weights, row: int) -> dict[str, Tensor]:
    """Return one client's row of W by name, to be saved."""
    row_n = weights.rows(np.array([row]))[0]
    if len(row_n) <= WRITTEN_OUT:
        return {"weights": torch.from_numpy(row_n)}
    level, none = weights.dtype.type(weights.level), weights.dtype.type(0)
    rest = max(level, none, key=lambda value: np.count_nonzero(row_n == value))
    others = np.flatnonzero(row_n != rest)
    return {
        "weights.rest": torch.from_numpy(np.full(1, rest, dtype=row_n.dtype)),
        "weights.columns": torch.from_numpy(others),
        "weights.values": torch.from_numpy(row_n[others]),
    }


def take_row(held: dict[str, Tensor], weights: Weights, path: Path) -> Tensor:
    """Take what `row_tensors` saved out of a client's file, and return the row written out, [n].

    Raises:
        Damaged: it is missing, or no row of such weights.
    """
    n, dtype = weights.shape[1], torch.from_numpy(np.empty(0, dtype=weights.dtype)).dtype
    names = [name for name in held if name == "weights" or name.startswith("weights.")]
    parts = {name: held.pop(name) for name in names}
    if set(parts) == {"weights"}:
        row_n = parts["weights"]
        if row_n.shape == (n,) and row_n.dtype == dtype:
            return row_n
    elif set(parts) == {"weights.rest", "weights.columns", "weights.values"}:
        rest, columns, values = (parts[f"weights.{one}"] for one in ("rest", "columns", "values"))
        fits = rest.shape == (1,) and columns.dim() == 1 and columns.shape == values.shape
        fits = fits and columns.dtype == torch.int64 and rest.dtype == values.dtype == dtype
        if fits and bool(((columns >= 0) & (columns < n)).all()):
            row_n = torch.full((n,), rest.item(), dtype=dtype)
            row_n[columns] = values
            return row_n
    raise Damaged(f"{path}: weights are no row of {n} numbers of type {dtype}")
