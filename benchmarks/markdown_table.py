"""A table as Markdown, for the pages of docs."""

from __future__ import annotations

from typing import Any

import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """Return a frame as a Markdown table: three digits of a number, nothing for a missing one.

    >>> print(markdown(pd.DataFrame({"rho": [0.25, 1234.5], "kind": ["a", "b"]})))
    | rho | kind |
    |---:|---|
    | 0.25 | a |
    | 1,230 | b |
    """
    numbers = [pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]
    lines = [list(table.columns), ["---:" if number else "---" for number in numbers]]
    lines += [[_text(value) for value in row] for row in table.itertuples(index=False)]
    head, rule, *rows = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([head, rule.replace(" ", ""), *rows])


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    if abs(value) >= 1000 and value != float("inf"):
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"
