"""Numbers in readable units."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """Return a number of bytes in a readable unit (powers of 1000).

    >>> human_bytes(1_500_000)
    '1.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
