"""metrics.jsonl and W.npz as tables and matrices.

Shapes: n clients.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.host import free_memory
from cobo_dist.maths.weights import Weights
from cobo_dist.storage.array_schema import DENSE_WEIGHTS, WEIGHT_LISTS, check_arrays, listed_rounds
from cobo_dist.storage.files import open_file, read_file
from cobo_dist.storage.reading import NotJson, SchemaError, read_row
from cobo_dist.storage.schema import METRICS_FILE, WEIGHTS_FILE, EvalRow, RoundRow

if TYPE_CHECKING:
    import pandas


def read_rows(folder: Path, kind: type[EvalRow] | type[RoundRow]) -> pandas.DataFrame:
    """Return the rows of metrics.jsonl of one kind, without the half line that a run may be writing.

    Raises:
        ConfigError: the file cannot be read, or a line is malformed.
    """
    import pandas

    path, found = folder / METRICS_FILE, []
    try:
        lines = read_file(path, free_memory()).splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = read_row(line)
        except NotJson:
            if number < len(lines):
                raise ConfigError(
                    f"{path}, line {number} is not JSON; repair or remove it"
                ) from None
            break
        except SchemaError as error:
            raise ConfigError(f"{path}, line {number}: {error}; repair or remove it") from None
        if isinstance(row, kind):
            found.append(row.model_dump(exclude={"event"}, exclude_unset=True))
    table = pandas.DataFrame(found)
    if "client" in table:
        table["client"] = table["client"].astype("Int64")  # the mean has none
    return table


def weight_rounds(folder: Path) -> list[int]:
    """Return the rounds of the snapshots of W, ascending; empty where there are none yet.

    Raises:
        ConfigError: W.npz cannot be read.
    """
    path = folder / WEIGHTS_FILE
    if not path.exists():
        return []
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as stored:
            return listed_rounds(stored) or [int(r) for r in stored["rounds"]]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None


def read_weights(folder: Path, r: int) -> NDArray[np.floating[Any]]:
    """Return W after round r, one of `weight_rounds`, as a matrix [n, n] of the file's type.

    Raises:
        ConfigError: W.npz cannot be read.
    """
    path = folder / WEIGHTS_FILE
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as stored:
            if listed_rounds(stored):
                lists = {one.name: stored[f"{r}.{one.name}"] for one in WEIGHT_LISTS}
                return Weights.of_lists(lists).dense()
            arrays = {name: stored[name] for name in ("rounds", "weights")}
            check_arrays(DENSE_WEIGHTS, arrays)
            found: NDArray[np.floating[Any]] = arrays["weights"][arrays["rounds"].tolist().index(r)]
            return found
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read: {' '.join(str(error).split())}; rerun, or restore it"
    )
