"""Write a table of pieces of text, each with the language that it is from:

python examples/text_fragments.py FOLDER TABLE.csv

FOLDER has one NAME.txt for each language, with a sentence a line. Of each language 1,000 pieces of 30
characters are taken from lines all over the file. They are in a random order that is always the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

PIECES, LENGTH = 1000, 30


def pieces(file: Path, rng: np.random.Generator) -> list[str]:
    """Return pieces of random lines of a file."""
    lines = [line for line in file.read_text().splitlines() if len(line) >= LENGTH]
    if not lines:
        sys.exit(f"{file} has no line of {LENGTH} characters; give longer texts")
    chosen = [lines[k] for k in rng.integers(len(lines), size=PIECES)]
    begins = [int(rng.integers(len(line) - LENGTH + 1)) for line in chosen]
    return [line[at : at + LENGTH] for line, at in zip(chosen, begins, strict=True)]


def main(folder: str, table: str) -> None:
    """Write the table."""
    rng = np.random.default_rng(0)
    files = sorted(Path(folder).glob("*.txt"))
    if len(files) < 2:
        sys.exit(f"{folder} has {len(files)} files NAME.txt; give a folder with two or more")
    rows = [(piece, file.stem) for file in files for piece in pieces(file, rng)]
    made = pd.DataFrame(rows, columns=["text", "label"]).sample(frac=1, random_state=0)
    Path(table).parent.mkdir(parents=True, exist_ok=True)
    made.to_csv(table, index=False)
    print(f"{len(made):,} pieces of {len(files)} languages in {table}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/text_fragments.py FOLDER TABLE.csv")
    main(*sys.argv[1:])
