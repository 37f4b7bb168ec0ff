"""Writes the metrics of every round into a CSV file of the run folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from cobo_dist.callbacks.callback import Callback, CallbackSection, StopsAfter
from cobo_dist.errors import ConfigError
from cobo_dist.registry import register
from cobo_dist.run_config import RunConfig
from cobo_dist.settings import Text

if TYPE_CHECKING:
    from cobo_dist.results.run import Run


class CsvConfig(CallbackSection):
    """Write a row for each round: round, its metrics, and those of an evaluation after it."""

    file: Text = Field("rounds.csv", description="file in the run folder")


@register.callback("csv")
class CsvLog(Callback):
    """Writes `rounds.csv`; a resumed run goes on where the checkpoint was."""

    name = "csv"
    Config = CsvConfig
    stops_after: ClassVar[StopsAfter] = "none"
    config: CsvConfig

    def check(self, run: RunConfig, metrics: Sequence[str]) -> None:
        """Note the columns of evaluations, which the first rounds may not have."""
        if Path(self.config.file).name != self.config.file or not self.config.file.endswith(".csv"):
            raise ConfigError(
                f"callbacks: csv writes into the run folder, and file={self.config.file!r} is no plain "
                "name that ends in .csv; choose another"
            )
        self._evaluated = [f"{split}/{one}" for split in run.eval_splits for one in metrics]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Note which part of the file belongs to the checkpoint."""
        self._size = int(state.get("size", 0))
        self._columns = list(state.get("columns", ()))

    def begin(self, run: Run) -> None:
        """Open the file, without the rows of rounds that are repeated."""
        self._path = run.path / self.config.file
        held = self._path.read_bytes()[: self._size] if self._size and self._path.exists() else b""
        if len(held) < self._size:  # resumed into another folder
            self._columns = []
        self._path.write_bytes(held)
        self._size = len(held)

    def after_round(self, r: int, metrics: Mapping[str, float]) -> bool | None:
        """Append a row."""
        text = io.StringIO()
        if not self._columns:
            self._columns = list(dict.fromkeys(("round", *metrics, *self._evaluated)))
            csv.writer(text).writerow(self._columns)
        row = {"round": r, **metrics}
        csv.writer(text).writerow([row.get(name, "") for name in self._columns])
        content = text.getvalue().encode()
        with self._path.open("ab") as file:
            file.write(content)
        self._size += len(content)
        return None

    def state(self) -> dict[str, Any]:
        """Return how much of the file there is."""
        return {"size": self._size, "columns": self._columns}
