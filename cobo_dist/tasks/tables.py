"""Sources `csv` and `parquet`: tables with one example a row.

Columns are read one at a time where the format can, so that a rank has the numbers once, as the model takes
them.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.registry import register
from cobo_dist.settings import Text, as_tuple
from cobo_dist.tasks.columns import Columns
from cobo_dist.tasks.sources import Labeled, SourceSection
from cobo_dist.tasks.table_columns import complete, numbers, of_clients, side_by_side

if TYPE_CHECKING:
    import pandas as pd

_MAX_NAMED = 8  # columns that a message names


class Table(ABC):
    """A table as its file has it."""

    names: Sequence[str]
    rows: int

    @abstractmethod
    def column(self, name: str) -> pd.Series[Any]:
        """Return one column.

        Raises:
            ValueError, OSError: it cannot be read.
        """


def _names(value: Any) -> Any:
    # An argument is text, since other sources have one label.
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        return tuple(name.strip() for name in value[1:-1].split(",") if name.strip())
    return (value,) if isinstance(value, str) else as_tuple(value)


ColumnNames = Annotated[tuple[Text, ...], BeforeValidator(_names), Field(min_length=1)]
"""One column, or several."""


class TableSource(SourceSection):
    """A table: one column has labels, one may have the clients, the others are inputs."""

    label: ColumnNames = Field(
        ("label",),
        description="column with the label or target of each example; several for a regression with several "
        "targets",
    )
    client: Text = Field(
        "client", description="column with the name of each example's client, if the table has it"
    )
    drop: Annotated[tuple[Text, ...], BeforeValidator(as_tuple)] = Field(
        (), description="columns that are no inputs"
    )

    @property
    def key(self) -> str:
        """Key and value that name the table."""
        raise TypeError(f"task.source.name={self.name} has no property key")

    def open(self) -> Table:
        """Return the table.

        Raises:
            ValueError, OSError, ImportError: it cannot be read.
        """
        raise TypeError(f"task.source.name={self.name} has no method open()")

    def read(self) -> Labeled:
        """Return the rows; inputs as columns."""
        key = self.key
        try:
            table = self.open()
            names = self._inputs(table, key)
            client = None
            if self.client in table.names:
                client = complete(table.column(self.client), self.client, key, "task.source.client")
            targets = [
                complete(table.column(name), name, key, "task.source.label") for name in self.label
            ]
        except ImportError as error:
            raise ConfigError(
                f"task.source.name={self.name} needs the package pyarrow ({error}); pip install pyarrow, or "
                "save the table as csv"
            ) from None
        except (ValueError, OSError, MemoryError) as error:
            raise unreadable(key, self.name, error) from None
        return Labeled(
            TableColumns(table, names, key, self.name),
            targets[0] if len(targets) == 1 else side_by_side(targets, self.label, key),
            key,
            client=None if client is None else of_clients(client, self.client, key),
        )

    def _inputs(self, table: Table, key: str) -> list[str]:
        """Return the names of the columns that are inputs."""
        names = [str(name) for name in table.names]
        shown = ", ".join(names[:_MAX_NAMED]) + (" ..." if len(names) > _MAX_NAMED else "")
        headless = ""
        if self.name == "csv" and all(map(_is_number, names)):
            headless = "its header has numbers alone, so it seems to lack one; write names as its first line"
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ConfigError(
                f"{key} has several columns called {twice[0]!r}; {headless or 'give each a name of its own'}"
            )
        wanted = [
            *(("label", name) for name in self.label),
            *(("drop", name) for name in self.drop),
        ]
        if self.client != "client":
            wanted.append(("client", self.client))
        for which, name in wanted:
            if name not in names:
                raise ConfigError(
                    f"task.source.{which}={name} is no column of {key}, which has {shown}; "
                    f"{headless or 'name one of them'}"
                )
        if len(set(self.label)) < len(self.label):
            raise ConfigError(
                f"task.source.label={list(self.label)} names a column twice; name each once"
            )
        if self.client in self.label:
            raise ConfigError(
                f"task.source.client={self.client} is the label too; name another column"
            )
        if not table.rows:
            raise ConfigError(f"{key} has no rows; give a table with examples")
        others = {*self.label, self.client, *self.drop}
        if not set(names) - others:
            raise ConfigError(f"{key} has no inputs beside {shown}; add columns of numbers")
        return [name for name in names if name not in others]


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


class TableColumns(Columns):
    """The inputs of a table."""

    def __init__(self, table: Table, names: Sequence[str], key: str, kind: str) -> None:
        self.table, self.names, self.key, self.kind = table, names, key, kind
        self.shape = (table.rows, len(names))

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        """Yield each column as numbers."""
        for name in self.names:
            try:
                column = self.table.column(name)
            except (ValueError, OSError, MemoryError) as error:
                raise unreadable(self.key, self.kind, error) from None
            yield numbers(column, name, self.key)


def unreadable(key: str, kind: str, error: Exception) -> ConfigError:
    """Return the refusal of a file that is no such table."""
    how = "as UTF-8 with a header" if kind == "csv" else "anew"
    return ConfigError(f"{key} cannot be read as {kind}: {words_of(error)[:300]}; write it {how}")


class _Frame(Table):
    """A table in memory."""

    def __init__(self, frame: pd.DataFrame, names: Sequence[str]) -> None:
        self.frame, self.names, self.rows = frame, names, len(frame)

    def column(self, name: str) -> pd.Series[Any]:
        return self.frame[name]


class TableFileSource(TableSource):
    """A table in a file."""

    file: Text = Field("", description="path of the file")

    @property
    def key(self) -> str:
        """The file as the user named it."""
        return f"task.source.file={self.file}"

    def path(self) -> Path:
        """Return the path of the file."""
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise ConfigError(f"{self.key} is no file; give the path of a {self.name} file")
        return path


@register.source("csv")
class CsvSource(TableFileSource):
    """A CSV file with a header."""

    def open(self) -> Table:
        """Return the table; clients as they are written, 007 too."""
        import pandas as pd

        path = self.path()
        # pandas would rename the second of two columns that are called alike.
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)
                # Or else pandas takes the first of too many fields for the name of the row.
                frame = pd.read_csv(
                    path, dtype={self.client: str}, low_memory=False, index_col=False
                )
        except pd.errors.ParserWarning:
            raise ValueError(
                f"rows have more fields than the {header.shape[1]} of the header"
            ) from None
        return _Frame(frame, [str(name) for name in header.iloc[0]])


class _Parquet(Table):
    """A Parquet file, of which one column is in memory at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self.file = pyarrow.parquet.ParquetFile(path)
        self.names, self.rows = self.file.schema_arrow.names, self.file.metadata.num_rows

    def column(self, name: str) -> pd.Series[Any]:
        found: pd.Series[Any] = self.file.read(columns=[name]).column(name).to_pandas()
        return found


@register.source("parquet")
class ParquetSource(TableFileSource):
    """A Parquet file; needs pyarrow."""

    def open(self) -> Table:
        """Return the table."""
        return _Parquet(self.path())
