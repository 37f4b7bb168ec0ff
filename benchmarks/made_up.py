"""Images made up for measuring, so that a benchmark needs no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def make_images(path: Path, train: int = 50_000, test: int = 10_000) -> Path:
    """Write an npz of noise in CIFAR-100's form, and by default of its size."""
    generator = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", train), ("test", test)):
        parts[f"x_{name}"] = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        parts[f"y_{name}"] = (np.arange(count) % 100).astype(np.uint8)
    np.savez(path, **parts)
    return path
