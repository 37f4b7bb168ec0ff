"""Columns of X by the names of parameters: what a method shares where it does not share whole models.

Shapes: c clients, d parameters, k of them in these columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor

from cobo_dist.errors import ConfigError
from cobo_dist.maths.flat import Layout, empty_rows


@dataclass(frozen=True)
class Columns:
    """Some columns of rows: those of the tensors `names`, in `runs` of neighbors."""

    names: tuple[str, ...]
    runs: tuple[slice, ...]

    @property
    def size(self) -> int:
        """The number k of columns."""
        return sum(run.stop - run.start for run in self.runs)

    def take(self, rows_cd: Tensor) -> Tensor:
        """Return these columns [c, k]: a view where they are one run, else a copy in aligned rows."""
        if len(self.runs) == 1:
            return rows_cd[:, self.runs[0]]
        part_ck = empty_rows(len(rows_cd), self.size, dtype=rows_cd.dtype, device=rows_cd.device)
        for part, rows in self._pairs(part_ck, rows_cd):
            part.copy_(rows)
        return part_ck

    def put(self, part_ck: Tensor, rows_cd: Tensor) -> None:
        """Write columns that `take` returned, and that changed, back into the rows."""
        if len(self.runs) == 1 and part_ck.data_ptr() == rows_cd[:, self.runs[0]].data_ptr():
            return
        for part, rows in self._pairs(part_ck, rows_cd):
            rows.copy_(part)

    def fill(self, rows_cd: Tensor, value: float) -> None:
        """Set these columns of the rows to one number."""
        for run in self.runs:
            rows_cd[:, run] = value

    def _pairs(self, part_ck: Tensor, rows_cd: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each run as columns of both."""
        pairs, at = [], 0
        for run in self.runs:
            end = at + run.stop - run.start
            pairs.append((part_ck[:, at:end], rows_cd[:, run]))
            at = end
        return pairs


def find_columns(layout: Layout, patterns: Sequence[str], *, others: bool = False) -> Columns:
    """Return the columns of the tensors whose names match a pattern; with `others`, of all the other tensors.

    A pattern with `*`, `?` or `[` is a glob over whole names. Another one is a name, or the beginning of
    names up to a dot: `head` matches `head.weight` and not `header.weight`.

    Raises:
        ConfigError: a pattern matches nothing, or no column is left.
    """
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in layout.names):
            near = ", ".join(_near(pattern, layout.names))
            raise ConfigError(f"no parameter is called {pattern!r}; near are: {near}")
    names: list[str] = []
    runs: list[slice] = []
    at = 0
    for name, length in zip(layout.names, layout.lengths, strict=True):
        if any(_matches(name, pattern) for pattern in patterns) != others:
            names.append(name)
            if runs and runs[-1].stop == at:
                runs[-1] = slice(runs[-1].start, at + length)
            else:
                runs.append(slice(at, at + length))
        at += length
    if not names:
        raise ConfigError(
            f"{' '.join(map(repr, patterns))} leaves no parameter of {len(layout.names)}; name fewer"
        )
    return Columns(tuple(names), tuple(runs))


def _matches(name: str, pattern: str) -> bool:
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.startswith(f"{pattern}.")


def _near(pattern: str, names: Sequence[str]) -> Sequence[str]:
    """Return up to five names that are like a pattern: names, or beginnings up to a dot."""
    if not names:
        return ["none: the model has no such tensors"]
    parts = {name.rsplit(".", k)[0] for name in names for k in range(name.count(".") + 1)}
    return get_close_matches(pattern.strip("*"), sorted(parts), 5, 0.4) or list(names[:5])


def layers_of(layout: Layout) -> tuple[str, ...]:
    """Return the names of the layers, the modules with parameters of their own, in the model's order.

    A parameter of the model itself is a layer of its own.
    """
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in layout.names))
