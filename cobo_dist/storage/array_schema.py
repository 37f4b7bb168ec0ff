"""The arrays that a run leaves: those of W.npz, and those of a checkpoint's safetensors files.

Shapes: n clients, k snapshots of W, m listed weights, e examples, c classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cobo_dist.storage.reading import SchemaError

Arrays = Mapping[str, npt.NDArray[Any]]

MAX_DENSE_CLIENTS = 512
"""The most clients whose W is stored as a matrix: one snapshot of so many takes 1 MiB in float32."""


MAX_LATER_GRAPHS = 16
"""The most right graphs after changes of clusters that W.npz has."""


@dataclass(frozen=True)
class Array:
    """One array of a file: its type as NumPy names it, and its shape in letters (`k n n`)."""

    name: str
    dtype: str
    shape: str
    description: str
    optional: bool = False


OF_CLIENTS = (
    Array("clusters", "int64", "n", "true cluster of each client, if known", optional=True),
    Array("names", "str", "n", "names of the clients, if they have any", optional=True),
    Array(
        "true_graph",
        "float32",
        "n n",
        f"right weights, where clusters do not say them; of up to {MAX_DENSE_CLIENTS} clients",
        optional=True,
    ),
    Array(
        "true_order",
        "int64",
        "n",
        "with `true_graph`: clients in the order of figures",
        optional=True,
    ),
    Array(
        "switches",
        "int64",
        "s",
        "rounds before which clients change cluster (`task.drift`), ascending",
        optional=True,
    ),
    Array(
        "later_clusters",
        "int64",
        "s n",
        "true clusters from each of `switches` on; `clusters` are those before",
        optional=True,
    ),
    Array(
        "later_graphs",
        "float32",
        "g n n",
        f"right weights from each of `switches` on; of the first {MAX_LATER_GRAPHS}",
        optional=True,
    ),
)
"""What the rows and columns of W are."""

DENSE_WEIGHTS = (
    Array("weights", "float", "k n n", "W after each of the rounds, of type `run.dtype`"),
    Array("rounds", "int64", "k", "rounds of the snapshots, ascending; the first is 0"),
    *OF_CLIENTS,
)
"""W.npz of up to `MAX_DENSE_CLIENTS` clients."""

WEIGHT_LISTS = (
    Array("groups", "int64", "n", "group of each client"),
    Array("level", "float64", "1", "a weight that is not listed, of two clients of one group"),
    Array("apart", "uint8", "n", "1: all weights of the row that are not listed are 0"),
    Array("counts", "int64", "n", "number of listed weights in each row"),
    Array("columns", "int32", "m", "column of each listed weight, row by row"),
    Array("values", "float", "m", "the listed weights; in W.npz of type `run.dtype`"),
)
"""One W of more clients, as lists. In W.npz, the names of snapshot r begin with the round: `50.groups`."""


def _named(prefix: str, layout: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(Array(prefix + one.name, one.dtype, one.shape, one.description) for one in layout)


PARTITION = (
    Array(
        "client", "int64", "e", "client of each example; those of the source's test set are last"
    ),
    Array("split", "uint8", "e", "0: training, 1: validation, 2: test"),
    Array("label", "int64", "e", "label in the data, before a client's change"),
    Array("label_names", "str", "c", "what the source calls each label"),
    Array("names", "str", "n", "names of the clients, if they have any", optional=True),
)
"""partition.npz."""

LISTED_WEIGHTS = (*_named("r.", WEIGHT_LISTS), *OF_CLIENTS)
LOGGER_DENSE = (
    Array("rounds", "int64", "k", "as in W.npz"),
    Array("weights", "float", "k n n", "as in W.npz"),
    Array("graph", "float", "n n", "W as rank 0 knows it"),
)
LOGGER_LISTED = (
    Array("file", "uint8", "b", "W.npz as it was, b bytes"),
    *_named("graph.", WEIGHT_LISTS),
)
ROW_DENSE = (Array("weights", "float", "n", "the client's row of W"),)
ROW_LISTED = (
    Array("weights.rest", "float", "1", "the weight in all columns that are not listed"),
    Array("weights.columns", "int64", "m", "columns with another weight"),
    Array("weights.values", "float", "m", "the weights there"),
)

_LETTERS = {
    "n": "clients", "k": "snapshots", "m": "listed weights", "b": "bytes", "e": "examples", "c": "classes",
    "s": "changes", "g": "graphs",
}  # fmt: skip
_KINDS = {"int64": "iu", "int32": "iu", "uint8": "ub", "float": "f", "float32": "f", "float64": "f"}


def check_arrays(layout: Iterable[Array], arrays: Arrays, **sizes: int) -> dict[str, int]:
    """Check names, kinds of type, and shapes; return the sizes by letter, `sizes` among them.

    Raises:
        SchemaError: an array is missing, or has another type or shape.

    >>> check_arrays(ROW_DENSE, {"weights": np.ones(3)})
    {'n': 3}
    """
    for spec in layout:
        if spec.name not in arrays:
            if spec.optional:
                continue
            raise SchemaError(f"it has no array `{spec.name}`")
        array, dims = np.asarray(arrays[spec.name]), spec.shape.split()
        if array.dtype.kind not in _KINDS.get(spec.dtype, "U"):
            raise SchemaError(f"`{spec.name}` has type {array.dtype}, not {spec.dtype}")
        fits = len(dims) == array.ndim and all(
            size == (int(dim) if dim.isdigit() else sizes.setdefault(dim, size))
            for dim, size in zip(dims, array.shape, strict=True)
        )
        if not fits:
            known = [f"{dim} = {sizes[dim]} {_LETTERS[dim]}" for dim in _LETTERS if dim in sizes]
            raise SchemaError(
                f"`{spec.name}` has shape {array.shape}, not [{', '.join(dims)}]"
                + (f" with {', '.join(known)}" if known else "")
            )
    return sizes


def check_lists(arrays: Arrays, prefix: str = "", **sizes: int) -> dict[str, int]:
    """Check one W that is stored as lists, under names that begin with `prefix`; as `check_arrays`.

    Raises:
        SchemaError: also where the lists do not go together.
    """
    sizes = check_arrays(_named(prefix, WEIGHT_LISTS), arrays, **sizes)
    n, m = sizes["n"], sizes["m"]
    columns, counts = arrays[f"{prefix}columns"], arrays[f"{prefix}counts"]
    if counts.sum() != m:
        raise SchemaError(f"`{prefix}counts` sum to {counts.sum()}, but {m} weights are listed")
    if m and not 0 <= columns.min() <= columns.max() < n:
        raise SchemaError(f"`{prefix}columns` has numbers of other clients than the {n} there are")
    return sizes


def check_logger_arrays(arrays: Arrays, n: int) -> None:
    """Check what a checkpoint holds of the logs of n clients.

    Raises:
        SchemaError: an array is missing, or has another type or shape.
    """
    if "file" in arrays:
        check_arrays(LOGGER_LISTED, arrays, n=n)
        check_lists(arrays, "graph.", n=n)
    else:
        check_arrays(LOGGER_DENSE, arrays, n=n)


def listed_rounds(names: Iterable[str]) -> list[int]:
    """Return the rounds of the snapshots in a W.npz that stores lists; empty if it stores matrices.

    >>> listed_rounds(["50.groups", "0.groups", "0.level", "clusters"])
    [0, 50]
    """
    return sorted(
        int(found[1]) for name in names if (found := re.fullmatch(r"(\d+)\.groups", name))
    )
