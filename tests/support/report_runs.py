"""Fabricated run folders for the tests of the report. n = 8 clients in 4 clusters of 2, T = 20 rounds."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import yaml

N, T, EVERY = 8, 20, 5
CLUSTERS = np.array([0, 1, 2, 3, 0, 1, 2, 3])  # not in order: heat maps have to sort them
SAME = CLUSTERS[:, None] == CLUSTERS[None, :]

# Final accuracy of the average client, by seed, and how many of the 8 clients beat their Local.
FINALS = {
    "local": {1: (0.60, 0), 2: (0.62, 0), 3: (0.64, 0)},
    "fedavg": {1: (0.20, 0)},
    "cobo": {1: (0.70, 7), 2: (0.73, 8), 3: (0.76, 6)},
    "oracle": {1: (0.74, 8), 2: (0.75, 8), 3: (0.76, 8)},
}


def client_accuracies(algorithm: str, seed: int) -> list[float]:
    """Eight accuracies with the mean of `FINALS` of which the stated number beat Local's."""
    mean, better = FINALS[algorithm][seed]
    local = FINALS["local"][seed][0]
    if algorithm == "local" or better in (0, N):
        return [mean] * N
    worse = local - 0.1
    return [(mean * N - worse * (N - better)) / better] * better + [worse] * (N - better)


def blocks(number: int) -> np.ndarray:
    """W of CoBo after `number` rounds: all ones at first, the true clusters from T/2 on."""
    return np.where(SAME, 1.0, max(0.0, 1.0 - 2.0 * number / T)).astype(np.float32)


MATRICES: dict[str, Callable[[int], np.ndarray]] = {
    "local": lambda _: np.eye(N, dtype=np.float32),
    "fedavg": lambda _: np.ones((N, N), dtype=np.float32),
    "cobo": blocks,
    "oracle": lambda _: SAME.astype(np.float32),
}


def write_run(
    folder: Path,
    algorithm: str = "cobo",
    seed: int = 1,
    task: str = "digits",
    *,
    finals: list[float] | None = None,
    last: int = T,
    rounds: int = T,
    finished: bool = True,
    problem: dict[str, Any] | None = None,
    validation: float | None = None,
    part: int = 0,
    **settings: Any,
) -> Path:
    """Fabricate one run folder. `last` is the last round on record; `settings` are algorithm keys.

    A run of other `rounds` than T says so in its config and summary; its log still ends at `last`.

    `problem` are task keys. With `validation` that split is evaluated too and ends at this accuracy.
    With `part`, evaluations before the last round are on so many examples, and 0.05 lower.
    """
    folder.mkdir(parents=True)
    config = {
        "run": {"seed": seed, "dir": str(folder), "rounds": rounds, "eval_every": EVERY},
        "task": {"name": task, "clients": N, **(problem or {})},
        "algorithm": {"name": algorithm, "rho": 0.01, **settings},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    finals = finals or client_accuracies(algorithm, seed)
    quadratic = task == "quadratic"

    def measured(number: int, client: int | None) -> dict[str, float]:
        reached = number / T  # accuracies rise in a straight line from 0.1
        final = sum(finals) / N if client is None else finals[client]
        loss = 2.0 - reached * final
        if quadratic:
            return {"loss": loss}
        if task == "language":  # perplexities fall in a straight line from 50
            return {"loss": loss, "perplexity": 50.0 - 10.0 * reached * final}
        return {"loss": loss, "accuracy": 0.1 + reached * (final - 0.1)}

    events: list[dict[str, Any]] = []
    for number in range(last + 1):
        if number:
            events.append(round_event(number, algorithm, quadratic))
        if number % EVERY == 0:
            whole = not part or number == T
            for client in [*range(N), None]:
                # The line of the mean counts the examples of all clients.
                count = (100 if whole else part) * (N if client is None else 1)
                about = {"whole": whole, "examples": count} if part else {}
                values = measured(number, client)
                if not whole:
                    values["accuracy"] -= 0.05
                place = {"event": "eval", "round": number, "client": client, "split": "test"}
                events.append({**place, "model": "personal", **about, **values})
            if validation is not None:
                place |= {"split": "validation", "client": None}
                values = {"loss": 1.0, "accuracy": validation * number / T}
                events.append({**place, "model": "personal", **values})
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    logged = [number for number in (0, 1, 2, 4, 7, 10, 15, 20) if number <= last]
    weights = np.stack([MATRICES.get(algorithm, blocks)(number) for number in logged])
    np.savez(folder / "W.npz", rounds=np.array(logged), weights=weights, clusters=CLUSTERS)
    if finished:
        summary = {
            **{"task": task, "algorithm": algorithm, "seed": seed, "rounds": rounds, "clients": N},
            **{"ranks": 2, "seconds": 10.0 * seed, "bytes_sent": 3_000_000 * T},
            "final": measured(T, None),
            "per_client": [{"client": i, **measured(T, i)} for i in range(N)],
            "cluster_match": 0.75 if algorithm == "cobo" else None,
        }
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def give_shares(
    folder: Path,
    names: tuple[str, ...] = ("ca", "es", "de", "nl"),
    rounds: int = 500,
    every: int = 1,
    clusters: np.ndarray | None = None,
) -> np.ndarray:
    """Make a fabricated run one of n named clients whose rows of W sum to 1. Returns W, [k, n, n].

    Every client turns from an equal share to the next one, with some noise. Its evaluations are left out.
    """
    n = len(names)
    logged = np.unique([*range(0, rounds + 1, every), rounds])
    rng = np.random.default_rng(0)
    pull = np.roll(np.eye(n), 1, axis=1) + 0.3 * np.roll(np.eye(n), 2, axis=1)
    noise = 0.25 * rng.normal(size=(len(logged), n, n))
    scores = (logged / rounds)[:, None, None] ** 0.5 * (pull + noise)
    weights = np.exp(scores) * (1.0 - np.eye(n))
    weights = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)
    more = {} if clusters is None else {"clusters": clusters}
    np.savez(folder / "W.npz", rounds=logged, weights=weights, names=np.array(names), **more)
    (folder / "metrics.jsonl").write_text("")
    (folder / "summary.json").unlink(missing_ok=True)
    return weights


def round_event(number: int, algorithm: str, quadratic: bool) -> dict[str, Any]:
    """The line of one round."""
    event = {
        **{"event": "round", "round": number, "seconds": 0.5, "pairs": 4, "messages": 8},
        **{"bytes_sent": 3_000_000, "loss": 2.0 / number, "weights_at_1": 0.2},
        "alignment": math.cos(number) / number if algorithm == "cobo" and number % 3 else None,
        "weights_at_0": min(1.0, number / 10),
        "components": min(4, 1 + number // 3),
    }
    if quadratic:
        event |= {"consensus_distance": 4.0 * 0.7**number, "gradient_norm": 9.0 * 0.8**number}
    return event


@dataclass(frozen=True)
class Report:
    """The output of one call of the command."""

    runs: Path
    out: Path
    printed: str

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV in the report."""
        with (self.out / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def curve(
        self, name: str, method: str, quantity: str
    ) -> dict[int, tuple[float, str, str, int]]:
        """One curve of a CSV: round -> mean, std and ci95 as written, seeds."""
        return {
            int(row["round"]): (float(row["mean"]), row["std"], row["ci95"], int(row["seeds"]))
            for row in self.rows(name)
            if (row["method"], row["quantity"]) == (method, quantity)
        }


def markdown_row(report: Report, method: str, name: str = "table.md") -> list[str]:
    """The cells of the first Markdown row of a method."""
    for line in (report.out / name).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == method:
            return cells
    raise AssertionError(f"no row {method}")


def assert_drawn(image: Path) -> np.ndarray:
    """Check that a PNG is neither blank nor full and has a CSV beside it. Returns its pixels, [h, w, 3]."""
    pixels = matplotlib.image.imread(image)[..., :3]  # in [0, 1]
    assert min(pixels.shape[:2]) > 250, image
    assert len(np.unique(pixels.sum(axis=-1))) > 20, image
    assert 0.01 < (pixels.min(axis=-1) < 0.9).mean() < 0.9, image
    assert image.with_suffix(".csv").is_file()
    return pixels
