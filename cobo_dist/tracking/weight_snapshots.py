"""The snapshots of W in W.npz, and the rows of W in checkpoints.

W of up to `MAX_DENSE_CLIENTS` clients is stored as a matrix, and W.npz is written anew with each snapshot.
W of more clients is stored as the lists of `maths.weights`, and a snapshot is appended to W.npz.
`storage.array_schema` describes both layouts.

Shapes: n clients.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from cobo_dist.comm.exchange import Exchange
from cobo_dist.host import free_memory
from cobo_dist.maths.true_graph import Truth
from cobo_dist.maths.weights import Weights, join
from cobo_dist.storage.array_schema import (
    MAX_DENSE_CLIENTS,
    MAX_LATER_GRAPHS,
    ROW_DENSE,
    ROW_LISTED,
    WEIGHT_LISTS,
    check_arrays,
)
from cobo_dist.storage.checkpoint_format import Damaged
from cobo_dist.storage.files import read_file
from cobo_dist.storage.reading import SchemaError
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import WEIGHTS_FILE

Arrays = dict[str, NDArray[Any]]


class WeightSnapshots:
    """Writes W.npz of a run folder."""

    def __init__(
        self,
        folder: RunDir,
        truth: Truth,
        names: Sequence[str],
        dtype: str = "float32",
    ) -> None:
        """Start without snapshots; they are stored as `dtype`. What is known of the clients is stored too."""
        self.folder, self.dtype = folder, np.dtype(dtype)
        self._of_clients = _arrays_of(truth)
        if names:
            self._of_clients["names"] = np.asarray(names, dtype=np.str_)
        self._dense: dict[int, NDArray[np.floating[Any]]] = {}

    def add(self, r: int, weights: Weights) -> None:
        """Store W after round r in W.npz.

        Raises:
            RunFailure: the file system refused.
        """
        if weights.shape[1] <= MAX_DENSE_CLIENTS:
            self._dense[r] = weights.dense().astype(self.dtype)
            self._write_dense()
        else:
            lists = _lists(weights) | {"values": weights.arrays()["values"].astype(self.dtype)}
            self._append(r, {f"{r}.{name}": array for name, array in lists.items()})

    def _write_dense(self) -> None:
        arrays = self._dense_arrays() | self._of_clients
        nbytes = arrays["weights"].nbytes
        with self.folder.replacing(WEIGHTS_FILE, nbytes) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # keys are arrays' names

    def _dense_arrays(self) -> Arrays:
        rounds = np.asarray(list(self._dense), dtype=np.int64)
        return {"rounds": rounds, "weights": np.stack(list(self._dense.values()))}

    def _append(self, r: int, arrays: Arrays) -> None:
        target = self.folder.path / WEIGHTS_FILE
        before = target.stat().st_size if r and target.exists() else 0
        if not before:
            arrays |= self._of_clients
        nbytes = before + sum(one.nbytes for one in arrays.values())
        with self.folder.replacing(WEIGHTS_FILE, nbytes) as draft:
            # Into a copy, so that an interruption leaves the file as it was.
            if before:
                shutil.copyfile(target, draft)
            with zipfile.ZipFile(draft, "a" if before else "w", zipfile.ZIP_DEFLATED) as file:
                for name, array in arrays.items():
                    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all snapshots as a checkpoint stores them."""
        path = self.folder.path / WEIGHTS_FILE
        stored = sum(one.nbytes for one in self._dense.values())
        return stored or (path.stat().st_size if path.exists() else 0)

    def state(self, weights: Weights) -> Arrays:
        """Return what a checkpoint stores: all snapshots, and W as rank 0 has it now."""
        if weights.shape[1] <= MAX_DENSE_CLIENTS:
            return self._dense_arrays() | {"graph": weights.dense()}
        content = read_file(self.folder.path / WEIGHTS_FILE, free_memory())
        file = np.frombuffer(content, dtype=np.uint8)
        return {"file": file} | {f"graph.{name}": one for name, one in _lists(weights).items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> Weights:
        """Take over the snapshots of a checkpoint; return the W stored beside them."""
        if "file" in arrays:
            with self.folder.replacing(WEIGHTS_FILE, arrays["file"].nbytes) as draft:
                draft.write_bytes(arrays["file"].tobytes())
            return Weights.of_lists({one.name: arrays[f"graph.{one.name}"] for one in WEIGHT_LISTS})
        graph = arrays["graph"]
        snapshots = dict(zip(arrays["rounds"].tolist(), arrays["weights"], strict=True))
        if len(graph) <= MAX_DENSE_CLIENTS:
            self._dense = snapshots
            self._write_dense()
        else:  # an earlier version stored matrices of any size
            for r, weights in snapshots.items():
                self.add(r, Weights.of_rows(range(len(graph)), weights))
        return Weights.of_rows(range(len(graph)), graph)


def _arrays_of(truth: Truth) -> Arrays:
    """Return what W.npz has of true clusters and graphs: those before round 1, and those of later phases."""
    arrays: Arrays = {}
    (first, *later), (graph, *graphs) = truth.clusters, truth.graphs
    if first is not None:
        arrays["clusters"] = np.asarray(first, dtype=np.int64)
    if truth.switches:
        arrays["switches"] = np.asarray(truth.switches, dtype=np.int64)
        if first is not None:
            arrays["later_clusters"] = np.asarray(later, dtype=np.int64)
    if graph is not None and graph.clients <= MAX_DENSE_CLIENTS:
        every = range(graph.clients)
        arrays |= {"true_graph": graph.rows(every), "true_order": graph.order}
        rows = [one.rows(every) for one in graphs[:MAX_LATER_GRAPHS] if one is not None]
        if rows:
            arrays["later_graphs"] = np.stack(rows)
    return arrays


def _lists(weights: Weights) -> Arrays:
    level = np.array([weights.level], dtype=np.float64)
    return {"groups": weights.groups_n, "level": level} | weights.arrays()


def gather_weights(
    exchange: Exchange, weights: Weights, purpose: str = "logging"
) -> tuple[Weights | None, int]:
    """Gather all rows of W on rank 0; return them there, and the bytes that the other ranks sent."""
    records = exchange.gather(save(weights.arrays()), purpose)
    if not records:
        return None, 0
    return joined(exchange, weights, records), sum(map(len, records[1:]))


def joined(exchange: Exchange, weights: Weights, records: Sequence[bytes]) -> Weights:
    """Return all rows of W from the records of all ranks: their `weights.arrays()`, saved."""
    parts = [
        weights.with_arrays(ids, load(one))
        for ids, one in zip(exchange.placement.by_rank, records, strict=True)
    ]
    return join(parts)


# -- rows in checkpoints -----------------------------------------------------------------------------


def row_tensors(weights: Weights, row: int, name: str = "weights") -> dict[str, Tensor]:
    """Return one client's row of W, or of another matrix, as the tensors of its file in a checkpoint."""
    row_n = weights.rows(np.array([row]))[0]
    if len(row_n) <= MAX_DENSE_CLIENTS:
        return {name: torch.from_numpy(row_n)}
    level, zero = weights.dtype.type(weights.level), weights.dtype.type(0)
    rest = max(level, zero, key=lambda value: np.count_nonzero(row_n == value))
    others = np.flatnonzero(row_n != rest)
    return {
        f"{name}.rest": torch.from_numpy(np.full(1, rest, dtype=row_n.dtype)),
        f"{name}.columns": torch.from_numpy(others),
        f"{name}.values": torch.from_numpy(row_n[others]),
    }


def take_row(
    held: dict[str, Tensor], weights: Weights, path: Path, name: str = "weights"
) -> NDArray[Any]:
    """Remove what `row_tensors` saved from a client's tensors, and return the row as a vector, [n].

    Raises:
        Damaged: it is missing, or no row of such weights.
    """
    n, dtype = weights.shape[1], weights.dtype
    # The layouts call every matrix `weights`.
    names = [one for one in held if one == name or one.startswith(f"{name}.")]
    parts: Arrays = {f"weights{one.removeprefix(name)}": held.pop(one).numpy() for one in names}
    dense = set(parts) == {"weights"}
    try:
        check_arrays(ROW_DENSE if dense else ROW_LISTED, parts, n=n)
        values = parts["weights"] if dense else parts["weights.values"]
        if values.dtype != dtype:
            raise SchemaError(f"`weights` has type {values.dtype}, not {dtype}")
        if dense:
            return values
        columns = parts["weights.columns"]
        if len(columns) and not 0 <= columns.min() <= columns.max() < n:
            raise SchemaError(f"`weights.columns` has other numbers than those of {n} clients")
        row_n = np.full(n, parts["weights.rest"][0], dtype=dtype)
        row_n[columns] = values
        return row_n
    except SchemaError as error:
        raise Damaged(f"{path}: no row of {n} numbers of type {dtype}: {error}") from None
