"""How figures are written: as wide as they need, or in columns of a paper or slide; in which formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

FORMATS = ("png", "pdf", "svg")
"""PNG is always written, since the page shows it."""


@dataclass(frozen=True)
class Look:
    """The size of figures and their formats."""

    name: str
    widths: tuple[float, float] | None = None  # inches of one and two columns; None: as is needed
    scale: float = 1.0  # of letters, lines and markers, beside those of a paper
    formats: tuple[str, ...] = ("png",)
    columns: int | None = None  # 1 or 2 for all figures; None: as each one needs

    def width(self, natural: float) -> float:
        """Return the width, in inches, of a figure whose panels need `natural` inches in a paper."""
        if self.widths is None:
            return natural
        columns = self.columns or (1 if natural * self.scale <= 1.5 * self.widths[0] else 2)
        return self.widths[columns - 1]

    def panels(self, count: int, each: float) -> int:
        """Return how many of `count` panels that need `each` inches go side by side, at least one."""
        if self.widths is None:
            return count
        return max(1, min(count, int(self.width(count * each) / (0.75 * each * self.scale))))


LOOKS = {
    "screen": Look("screen"),
    "paper": Look("paper", (3.3, 6.9), formats=FORMATS),
    # A slide of 6.3 x 3.5 inches, on which letters of 11 points are usual.
    "talk": Look("talk", (3.9, 6.0), scale=1.375, formats=FORMATS),
}
"""By name; the letters of a paper's figures have 7 and 8 points."""

_current: ContextVar[Look] = ContextVar("look", default=LOOKS["screen"])


def current_look() -> Look:
    """Return the look of figures that are drawn now."""
    return _current.get()


@contextmanager
def use_look(
    name: str, formats: Sequence[str] | None = None, columns: int | None = None
) -> Iterator[None]:
    """Draw figures in this look.

    `formats` are in place of its own; `columns` make all figures one or two columns wide.
    """
    look = replace(LOOKS[name], columns=columns)
    if formats is not None:
        look = replace(look, formats=("png", *(one for one in FORMATS[1:] if one in formats)))
    token = _current.set(look)
    try:
        yield
    finally:
        _current.reset(token)


def points(size: float) -> float:
    """Return the size of letters that have `size` points in a paper."""
    return size * current_look().scale
