"""How many batches of messages two ranks exchange in a round: a small batch costs more than it carries."""

from __future__ import annotations

from pathlib import Path

from pool import RankPool
from problems import train, write_quadratic
from recording import RecordingTransport

from cobo_dist.comm.session import Session

ROUNDS = 2
COBO = ["pairs", "gradients", "gradients", "mixing"]  # models, half gradients, products, sums
EXPECTED = {
    "local": [],
    "cobo algorithm.sampling.name=all": COBO,
    "cobo algorithm.sampling.name=all algorithm.alignment=cosine": COBO,
    "cobo algorithm.sampling.rate=0": ["mixing"],
    # Blocks of W, then models.
    "cobo algorithm.sampling.name=all algorithm.domain=simplex": [*COBO, "mixing"],
    "fedavg": ["mixing"],
    "ditto": ["mixing"],
    "ifca": ["mixing", "mixing"],  # Choices, then models.
    "oracle": ["mixing"],
}


def purposes(session: Session, runs: dict[str, list[str]]) -> dict[str, list[str]]:
    """Train each run; return what each batch of this rank was for."""
    found = {}
    for name, arguments in runs.items():
        assert isinstance(session.transport, RecordingTransport)
        before = len(session.transport.batches)
        assert train(session, arguments) == 0
        found[name] = [batch[0].purpose for batch in session.transport.batches[before:]]
    return found


def test_batches_of_a_round(pool: RankPool, tmp_path: Path) -> None:
    # CoBo takes at most as many pairs at a time as there are clients: all 3 of 3 clients are one piece.
    problems = {n: write_quadratic(tmp_path / f"{n}.npz", n) for n in (3, 4)}
    runs = {
        name: [
            "task.name=quadratic", f"task.file={problems[3 if name.startswith('cobo') else 4]}",
            f"run.rounds={ROUNDS}", f"run.dir={tmp_path / 'run'}", "run.overwrite=true",
            "run.device=cpu", *f"algorithm.name={name}".split(),
        ]
        for name in EXPECTED
    }  # fmt: skip
    expected = {name: batches * ROUNDS for name, batches in EXPECTED.items()}
    assert pool.run(2, purposes, runs) == [expected] * 2
