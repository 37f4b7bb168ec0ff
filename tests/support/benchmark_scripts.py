"""Running the scripts of benchmarks/ in this process, and reading the tables that they print."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest


def run_script(monkeypatch: pytest.MonkeyPatch, script: ModuleType, *given: str) -> None:
    """Run the `main` of a script with these arguments."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *given])
    script.main()


def by_method(text: str) -> dict[str, dict[str, str]]:
    """Return the rows of a Markdown table by their first cells, in order."""
    head, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()
    )
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}
