"""Draws the pictures of docs/DATA.md, one for each partition: python docs/partition_pictures.py"""

from __future__ import annotations

from pathlib import Path

from cobo_dist.cli.prepare import main

FIGURES = Path(__file__).with_name("figures")
SETTINGS = {
    "iid": ["clients=10"],
    "quantity": ["clients=10"],
    "dirichlet": ["clients=10", "alpha=0.3"],
    "pathological": ["clients=10", "classes_per_client=3"],
    "shards": ["clients=10"],
    "ring": ["clients=10", "classes_per_client=4"],
    "disjoint_classes": ["cluster_sizes=[2, 2, 3, 3]"],
}
"""The settings of each partition, of scikit-learn's digits."""


def arguments(name: str, folder: Path) -> list[str]:
    """Return the arguments of `prepare` for the picture of a partition."""
    given = [f"task.partition.{one}" for one in (f"name={name}", *SETTINGS[name])]
    return ["task.name=classification", *given, "--picture", str(folder / f"partition_{name}.png")]


if __name__ == "__main__":
    for name in SETTINGS:
        main(arguments(name, FIGURES))
        (FIGURES / f"partition_{name}.csv").unlink()
