"""Time and memory before the first round, of a Parquet file with natural clients.

python benchmarks/table_start.py [--rows 10000000] [--clients 1000] [--columns 10]

Writes the file into a temporary folder, builds the task `classification` from it, and prints processor
seconds and the peak of resident memory, beside that of a process that has only imported torch and cobo_dist.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS_AT_ONCE = 1_000_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--columns", type=int, default=10, help="inputs, as float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.parquet"
        write(file, options.rows, options.clients, options.columns)
        # Of its own, since a process keeps its peak.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            bare, seconds, peak = pool.apply(build, (str(file),))
    print(f"{options.rows:,} rows, {options.columns} columns, {options.clients:,} clients")
    print(f"{seconds:.1f} s of one core, {peak / 2**30:.2f} GiB; bare {bare / 2**30:.2f} GiB")


def write(file: Path, rows: int, clients: int, columns: int) -> None:
    """Write a table of random numbers, labels and clients."""
    import pyarrow
    import pyarrow.parquet

    rng, writer = np.random.default_rng(0), None
    for first in range(0, rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, rows - first)
        table = {f"x{i}": rng.normal(size=count).astype(np.float32) for i in range(columns)}
        table |= {
            "client": rng.integers(clients, size=count),
            "label": rng.integers(10, size=count),
        }
        part = pyarrow.table(table)
        writer = writer or pyarrow.parquet.ParquetWriter(file, part.schema)
        writer.write_table(part)
    assert writer is not None, "there are rows"
    writer.close()


def build(file: str) -> tuple[int, float, int]:
    """Return the bytes of a bare process, the processor seconds of building the task, and its peak."""
    import torch

    from cobo_dist.config import load_config
    from cobo_dist.tasks.registry import build_task

    settings = ["task.name=classification", "task.source.name=parquet", f"task.source.file={file}"]
    config = load_config(None, [*settings, "task.partition.name=by_column"])
    bare = peak_bytes()
    start = time.process_time()
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    task.fingerprint()
    return bare, time.process_time() - start, peak_bytes()


def peak_bytes() -> int:
    """Return the peak of this process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
