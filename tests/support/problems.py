"""Small problems that many tests use, and runs of them inside a connected session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import load_file

from cobo_dist.algorithms.registry import build_algorithm
from cobo_dist.comm.session import Session
from cobo_dist.config import load_config
from cobo_dist.training.run import run_in_session

QUIET = ("log.figures=false", "log.progress=none")


def write_quadratic(
    path: Path,
    clients: int = 7,
    size: int = 5,
    seed: int = 0,
    clusters: int = 3,
    **more: np.ndarray,
) -> Path:
    """Write Example 2 with clusters of unequal size, and more arrays; inputs depend on the seed."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(clusters, size))[np.arange(clients) % clusters]
    curvature = rng.uniform(0.5, 1.5, size=clients)
    np.savez(path, centers=centers, curvature=curvature, start=rng.normal(size=size), **more)
    return path


def write_texts(folder: Path) -> Path:
    """Write the short texts of three clients, each with a letter of its own."""
    folder.mkdir()
    for letter in "xyz":
        lines = [f"{line} {letter * (line % 7)}" for line in range(60)]
        (folder / f"{letter}.txt").write_text("\n".join(lines) + "\n")
    return folder


def train(session: Session, arguments: list[str]) -> int:
    """Run a whole training inside the session, as `cobo_dist.train` would."""
    return run_in_session(load_config(None, [*QUIET, *arguments]), session).code


def train_with(session: Session, arguments: list[str], build: Callable[..., Any]) -> int:
    """As `train`, with the algorithm that `build(config, clients, exchange, context)` returns."""
    with mock.patch("cobo_dist.training.build.build_algorithm", build):
        return train(session, arguments)


def train_and_weights(session: Session, arguments: list[str]) -> np.ndarray:
    """Run a whole training; return this rank's rows of W as the algorithm holds them."""
    built = []

    def build(*parts: Any) -> Any:
        built.append(build_algorithm(*parts))
        return built[-1]

    train_with(session, arguments, build)
    return built[-1].weights.dense()  # a run builds another one where clients move


def models(folder: Path) -> dict[str, np.ndarray]:
    """Return all final models of a run folder: {client/name: array}."""
    found = {}
    for path in sorted((folder / "models").glob("*.safetensors")):
        for name, value in load_file(path).items():
            found[f"{path.stem}/{name}"] = value
    return found


def rows(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl with one event."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]
