"""Small image files for tests, and the folder of the real CIFAR-100."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


def write_images(
    path: Path, train: int = 400, test: int = 80, size: int = 16, classes: int = 10, seed: int = 0
) -> Path:
    """Write an npz of noise whose mean brightness depends on the class; labels cycle through all classes."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        base = 20 + labels * (200 // classes)
        noise = rng.integers(0, 30, size=(count, size, size, 3))
        arrays[f"x_{name}"] = (base[:, None, None, None] + noise).astype(np.uint8)
        arrays[f"y_{name}"] = labels.astype(np.uint8)
        arrays[f"coarse_{name}"] = (labels // 2).astype(np.uint8)
    np.savez(path, **arrays)
    return path


def cifar_root() -> str:
    """Return the folder with the real CIFAR-100, or skip the test."""
    root = Path(os.environ.get("COBO_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / "cifar100.npz").is_file():
        pytest.skip(f"{root / 'cifar100.npz'} is missing; set COBO_DATA to the folder that has it")
    return str(root)
