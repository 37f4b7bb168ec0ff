"""Sources `csv` and `parquet`: tables with one example a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.registry import register
from cobo_dist.settings import Text, as_tuple
from cobo_dist.tasks.sources import Labeled, SourceSection

if TYPE_CHECKING:
    import pandas as pd

_MAX_NAMED = 8  # columns that a message names


class TableSource(SourceSection):
    """A table: one column has labels, one may have the clients, the others are inputs."""

    file: Text = Field("", description="path of the file")
    label: Text = Field("label", description="column with the label of each example")
    client: Text = Field(
        "client", description="column with the name of each example's client, if the table has it"
    )
    drop: Annotated[tuple[Text, ...], BeforeValidator(as_tuple)] = Field(
        (), description="columns that are no inputs"
    )

    def table(self, path: Path) -> pd.DataFrame:
        """Return the table; the columns `label` and `client` as text if they can be.

        Raises:
            ValueError, OSError, ImportError: it cannot be read.
        """
        raise TypeError(f"task.source.name={self.name} has no method table(path)")

    def read(self) -> Labeled:
        """Return the rows."""
        key, path = f"task.source.file={self.file}", Path(self.file).expanduser()
        if not path.is_file():
            raise ConfigError(f"{key} is no file; give the path of a {self.name} file")
        try:
            table = self.table(path)
        except ImportError as error:
            raise ConfigError(
                f"task.source.name={self.name} needs the package pyarrow ({error}); pip install pyarrow, or "
                "save the table as csv"
            ) from None
        except (ValueError, OSError, MemoryError) as error:
            reason = words_of(error)[:300]
            raise ConfigError(
                f"{key} cannot be read as {self.name}: {reason}; write it anew"
            ) from None
        self._check_names(table, key)
        client = None
        if self.client in table.columns:
            client = complete(table[self.client], self.client, key, "task.source.client")
        labels = complete(table[self.label], self.label, key, "task.source.label")
        inputs = table.drop(columns={self.label, self.client, *self.drop} & {*table.columns})
        return Labeled(_numbers(inputs, key), labels, key, client=client)

    def _check_names(self, table: pd.DataFrame, key: str) -> None:
        names = [str(name) for name in table.columns]
        shown = ", ".join(names[:_MAX_NAMED]) + (" ..." if len(names) > _MAX_NAMED else "")
        wanted = [("label", self.label), *(("drop", name) for name in self.drop)]
        if self.client != "client":
            wanted.append(("client", self.client))
        for which, name in wanted:
            if name not in names:
                raise ConfigError(
                    f"task.source.{which}={name} is no column of {key}, which has {shown}; name one of them"
                )
        if self.client == self.label:
            raise ConfigError(
                f"task.source.client={self.client} is the label too; name another column"
            )
        if not len(table):
            raise ConfigError(f"{key} has no rows; give a table with examples")
        if not set(names) - {self.label, self.client, *self.drop}:
            raise ConfigError(f"{key} has no inputs beside {shown}; add columns of numbers")


@register.source("csv")
class CsvSource(TableSource):
    """A CSV file with a header."""

    def table(self, path: Path) -> pd.DataFrame:
        """Return the table; clients as they are written, 007 too."""
        import pandas as pd

        return pd.read_csv(path, dtype={self.client: str}, low_memory=False)


@register.source("parquet")
class ParquetSource(TableSource):
    """A Parquet file; needs pyarrow."""

    def table(self, path: Path) -> pd.DataFrame:
        """Return the table."""
        import pandas as pd

        return pd.read_parquet(path)


def complete(column: pd.Series[Any], name: str, key: str, setting: str) -> NDArray[Any]:
    """Return a column of labels or clients, none of which is missing."""
    refuse_missing(column, name, key, setting)
    values = column.to_numpy()
    return values.astype(str) if values.dtype.kind in "OT" else values


def refuse_missing(column: pd.Series[Any], name: str, key: str, setting: str) -> None:
    """Check that every row of a column has a value.

    Raises:
        ConfigError: with the first row that has none.
    """
    missing = column.isna().to_numpy()
    if missing.any():
        raise ConfigError(
            f"{key}: column {name} ({setting}) is empty or NaN in {missing.sum()} of {len(column)} rows, "
            f"first in "
            f"row {int(missing.argmax()) + 1}; fill or drop them"
        )


def _numbers(inputs: pd.DataFrame, key: str) -> NDArray[Any]:
    """Return the inputs as numbers [N, columns]."""
    import pandas as pd

    for name in inputs.columns:
        column = inputs[name]
        if not pd.api.types.is_numeric_dtype(column):
            wrong = pd.to_numeric(column, errors="coerce").isna().to_numpy()
            if not wrong.any():
                continue
            row = int(wrong.argmax())
            raise ConfigError(
                f"{key}: column {name} holds {str(column.iloc[row])[:40]!r} in row {row + 1}, but inputs are "
                f"numbers; convert it or set task.source.drop=[{name}]"
            )
        finite = np.isfinite(column.to_numpy(dtype=np.float64, na_value=np.nan))
        if not finite.all():
            raise ConfigError(
                f"{key}: column {name} is empty, NaN or infinite in {(~finite).sum()} of {len(finite)} rows, "
                f"first in row {int(finite.argmin()) + 1}; fill or drop them, or set "
                f"task.source.drop=[{name}]"
            )
    single = all(dtype == np.float32 for dtype in inputs.dtypes)
    numbers: NDArray[Any] = inputs.apply(pd.to_numeric).to_numpy(
        np.float32 if single else np.float64
    )
    return numbers
