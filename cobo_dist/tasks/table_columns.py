"""Columns of tables as labels, clients and inputs; what cannot be one is refused with its row.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.tasks.columns import Coded

if TYPE_CHECKING:
    import pandas as pd


def refuse_missing(column: pd.Series[Any], name: str, key: str, setting: str) -> None:
    """Check that every row of a column has a value.

    Raises:
        ConfigError: with the first row that has none.
    """
    missing = column.isna().to_numpy()
    if missing.any():
        raise ConfigError(
            f"{key}: column {name} ({setting}) is empty or NaN in {missing.sum()} of {len(column)} rows, "
            f"first in row {int(missing.argmax()) + 1}; fill or drop them"
        )


def complete(column: pd.Series[Any], name: str, key: str, setting: str) -> NDArray[Any] | Coded:
    """Return a column of labels or clients, none of which is missing: numbers, or text as `Coded`.

    Raises:
        ConfigError: a row has none, or one that is neither number nor text.
    """
    import pandas as pd

    refuse_missing(column, name, key, setting)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy()
    if column.dtype == object:
        nested = column.map(lambda one: isinstance(one, (bytes, list, dict, tuple, np.ndarray)))
        if nested.any():
            raise ConfigError(
                f"{key}: column {name} ({setting}) holds {str(column[nested].iloc[0])[:40]!r}, which is "
                "neither number nor text; convert it"
            )
        column = column.map(str)
    codes, names = pd.factorize(column, sort=True)
    return Coded(codes, [str(one) for one in names])


def of_clients(client: NDArray[Any] | Coded, name: str, key: str) -> NDArray[Any] | Coded:
    """Return the names of clients: text, or whole numbers, which may be stored as floats."""
    if isinstance(client, Coded) or client.dtype.kind in "iub":
        return client
    if not (np.isfinite(client) & (client == np.floor(client))).all():
        raise ConfigError(
            f"{key}: column {name} (task.source.client) holds fractions such as {client[0]:g}; clients are "
            "whole numbers or text"
        )
    return client.astype(np.int64)


def side_by_side(
    targets: Sequence[NDArray[Any] | Coded], names: Sequence[str], key: str
) -> NDArray[Any]:
    """Return several targets [N, outputs]."""
    for one, name in zip(targets, names, strict=True):
        if isinstance(one, Coded):
            raise ConfigError(
                f"{key}: column {name} (task.source.label) holds {one.names[0][:40]!r}; several targets "
                "are numbers"
            )
    return np.stack([np.asarray(one, dtype=np.float64) for one in targets], axis=1)


def numbers(column: pd.Series[Any], name: str, key: str) -> NDArray[np.float64]:
    """Return a column of inputs as numbers [N]."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if not pd.api.types.is_numeric_dtype(column):
        found = _converted(column)
        wrong = (found.isna() & column.notna()).to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise ConfigError(
                f"{key}: column {name} holds {str(column.iloc[row])[:40]!r} in row {row + 1}, but inputs are "
                f"numbers; convert it or set task.source.drop=[{name}]"
            )
        column = found
    if pd.api.types.is_complex_dtype(column):
        raise ConfigError(
            f"{key}: column {name} has complex numbers; split them or set task.source.drop=[{name}]"
        )
    values: NDArray[np.float64] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    finite = np.isfinite(values)
    if not finite.all():
        raise ConfigError(
            f"{key}: column {name} is empty, NaN or infinite in {(~finite).sum()} of {len(finite)} rows, "
            f"first in row {int(finite.argmin()) + 1}; fill or drop them, or set "
            f"task.source.drop=[{name}]"
        )
    return values


def _converted(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return text as numbers, NaN where it is none. A date is none, though pandas would take it for one."""
    import pandas as pd

    nothing = pd.Series(np.nan, index=column.index)
    if column.dtype.kind in "mM":
        return nothing
    try:
        return pd.to_numeric(column, errors="coerce")
    except (TypeError, ValueError):  # lists, dictionaries
        return nothing
