"""The plan of a run against the run itself: bytes and messages of every round, and the buffers it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import QUIET, rows, train, write_quadratic

from cobo_dist.cli import plan_output
from cobo_dist.cli.plan import main
from cobo_dist.comm.session import Session
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.config import Config, load_config
from cobo_dist.errors import ConfigError
from cobo_dist.maths.flat import row_bytes
from cobo_dist.phase_timer import PhaseTimer
from cobo_dist.planning.dry_run import DryRun, RoundTraffic
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.build import build_learner
from cobo_dist.training.preparation import prepare

# d = 64 * 18 + 18 + 18 * 10 + 10 = 1360: rows without padding, and halves that are not equal.
SMALL = ("model.hidden=[18]", "run.rounds=4", "run.eval_every=0", "run.threads=1")
NORM = "model.norm=batch"


def dry_run_of(settings: list[str], ranks: int, clients: int = 0) -> DryRun:
    config = load_config(None, settings)
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    return DryRun(config, task, ranks, clients)


def mean_of(dry_run: DryRun) -> RoundTraffic:
    return list(dry_run.traffic().values())[1]


# -- traffic -----------------------------------------------------------------------------------------

VIRTUAL = ["clock=virtual", "clock.policy=free", "clock.slow_clients=[1,4]", "clock.slow_factor=3"]
DIFFERENCE = ["algorithm.selection=difference", "algorithm.difference.tolerance=1e9"]
# Weights stand still at gamma = 0, so that every round mixes at W^0.
EXACT = {
    "cobo": ["algorithm.gamma=0"],
    "cobo, time": ["algorithm.gamma=0", "algorithm.sampling.name=time"],
    "cobo, first round": ["algorithm.order=models_first", "run.rounds=1"],
    "cobo, all pairs in pieces": ["algorithm.gamma=0", "algorithm.sampling.name=all"],
    "cobo, simplex": ["algorithm.gamma=0", "algorithm.domain=simplex", "run.dtype=float64"],
    "cobo, capped": ["algorithm.gamma=0", "algorithm.coupling=capped"],
    # Nothing is cut, so every round mixes at W^0.
    "cobo, differences": [*DIFFERENCE, "algorithm.difference.window=2"],
    "differences, some clients": [
        *DIFFERENCE,
        "algorithm.difference.window=3",
        "algorithm.coupling=capped",
        "participation.count=3",
    ],
    "cobo, deterministic": ["algorithm.gamma=0", "comm.deterministic=true"],
    "local": ["algorithm.name=local"],
    "fedavg": ["algorithm.name=fedavg", "algorithm.buffers=averaged", NORM],
    "finetuned": ["algorithm.name=finetuned_fedavg", "algorithm.fedavg_share=0.4"],
    "ditto": ["algorithm.name=ditto"],
    "oracle": ["algorithm.name=oracle"],
    "apfl": ["algorithm.name=apfl", "local.steps=2"],
    "pfedme": ["algorithm.name=pfedme", "participation.count=3"],
    "perfedavg": ["algorithm.name=perfedavg", "algorithm.variant=hessian_free"],
    "fedala": ["algorithm.name=fedala", "algorithm.buffers=averaged", NORM],
    "validation": ["algorithm.name=validation_based", "algorithm.every=2", NORM],
    "similarity": [
        "algorithm.name=similarity_based",
        "algorithm.temperature=1e15",
        "algorithm.every=2",
    ],
    "prediction": ["algorithm.name=prediction_based", "algorithm.every=2", "algorithm.top=3"],
    "pacfl": ["algorithm.name=pacfl", "algorithm.clusters=1", "algorithm.vectors=2"],
    "cobo, some columns": [
        "algorithm.gamma=0",
        "algorithm.sampling.rate=5",
        "algorithm.alignment_columns=['3']",
    ],
    "cobo, sketch": ["algorithm.gamma=0", "algorithm.sampling.rate=5", "algorithm.sketch=100"],
    "differences, sketch": [*DIFFERENCE, "algorithm.difference.window=2", "algorithm.sketch=100"],
    # Told of one cluster, clients have nothing to choose.
    "ifca": ["algorithm.name=ifca", "algorithm.client_share=0.6", "algorithm.centers=1", NORM],
    "cobo, some clients": [
        "algorithm.gamma=0",
        "algorithm.sampling.rate=5",
        "participation.count=3",
    ],
    "simplex, some clients": [
        "algorithm.gamma=0",
        "algorithm.domain=simplex",
        "algorithm.sampling.rate=5",
        "participation.count=3",
    ],
    "fedavg, some clients": ["algorithm.name=fedavg", "participation.count=1", "local.epochs=1"],
    "oracle, some clients": ["algorithm.name=oracle", "participation.count=3"],
    "oracle, drift": [
        "algorithm.name=oracle",
        "task.drift=[{round: 2, clients: [0], cluster: 1}, {round: 4, clients: [1]}]",
        NORM,
    ],
    "drift, some clients": [
        "algorithm.name=oracle",
        "participation.count=3",
        "task.drift=[{round: 3, count: 2}]",
    ],
    "oracle, by examples": ["algorithm.name=oracle", "algorithm.weighting=examples"],
    "ditto, some clients": ["algorithm.name=ditto", "participation.fraction=0.4"],
    "finetuned, some clients": ["algorithm.name=finetuned_fedavg", "participation.count=2"],
    "validation, some clients": ["algorithm.name=validation_based", "participation.count=3", NORM],
    "ifca, some clients": ["algorithm.name=ifca", "participation.count=3", "algorithm.centers=1"],
    "fc, some clients": [
        "algorithm.name=federated_clustering",
        "task.clusters=1",
        "task.clients_per_cluster=5",
        "participation.count=3",
    ],
    "cobo, virtual": [
        "algorithm.gamma=0",
        "algorithm.sampling.rate=5",
        *VIRTUAL,
        "clock.latency=2.5",
        "clock.discount=sqrt",
    ],
    "capped, virtual": ["algorithm.gamma=0", "algorithm.coupling=capped", *VIRTUAL],
    "fedavg, virtual": ["algorithm.name=fedavg", *VIRTUAL],
    "adpsgd": ["algorithm.name=adpsgd"],
    "adpsgd, virtual": ["algorithm.name=adpsgd", "algorithm.graph=ring", *VIRTUAL],
    "swift": ["algorithm.name=swift", "algorithm.every=3"],
    "swift, virtual": ["algorithm.name=swift", "clock.latency=2.5", *VIRTUAL],
    "fc": ["algorithm.name=federated_clustering", "task.clusters=1", "task.clients_per_cluster=5"],
}


def test_memory_has_all_that_a_method_keeps_for_a_client() -> None:
    """APFL has a personal model, and momenta of two models; FedALA weights for the last layer's columns."""

    def items(name: str) -> dict[str, int]:
        settings = [*SMALL, "optimizer.momentum=0.9", f"algorithm.name={name}"]
        dry_run = dry_run_of(settings, 1)
        dry_run.traffic()
        return {item.name: item.bytes for item in dry_run.memory()}

    model, last_layer = (row_bytes(size, torch.float32) for size in (1360, 18 * 10 + 10))
    kept = "kept by the algorithm for each client"
    found = items("apfl")
    assert (found[kept], found["optimizer, 2 x as many"]) == (8 * model, 2 * 8 * model)
    found = items("fedala")
    assert (found[kept], found["optimizer, 1 x as many"]) == (8 * last_layer, 8 * model)
    assert found["gradients at midpoints and other models"] == 2 * 8 * model


@pytest.mark.parametrize("case", EXACT)
def test_every_round_sends_what_was_planned(pool: RankPool, tmp_path: Path, case: str) -> None:
    settings = [*SMALL, *EXACT[case]]
    pool.run(3, train, [*settings, f"run.dir={tmp_path / 'run'}"])
    found = rows(tmp_path / "run", "round")
    dry_run = dry_run_of(settings, 3)
    assert found
    clients_d = np.zeros(2)
    for row in found:
        sent = dry_run.round(row["round"])
        clients_d += sent.bytes_per_client
        assert sent.total == row["bytes_sent"], row["round"]
        assert [sent.bytes[purpose] for purpose in TRAINING] == [
            row[f"bytes_{purpose}"] for purpose in TRAINING
        ]
        assert sum(sent.messages.values()) == row["messages"]
        assert sent.pairs == row["pairs"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert clients_d.tolist() == pytest.approx(
        list(summary["bytes_per_client"].values()), rel=1e-12
    )
    assert (dry_run.round(len(found)).total > 0) == (not case.startswith(("local", "finetuned")))


def test_four_clients_on_four_ranks_by_hand(tmp_path: Path) -> None:
    """All 6 pairs: every model goes to 3 ranks; d numbers and 2 * 2 products cross for each pair.

    On the simplex each of 12 ordered pairs of ranks says its one weight first, then one model travels.
    """
    problem = write_quadratic(tmp_path / "problem.npz", clients=4, size=40)
    settings = [
        "task.name=quadratic", f"task.file={problem}", "algorithm.sampling.name=all",
        "algorithm.domain=simplex", "run.dtype=float64",
    ]  # fmt: skip
    dry_run = dry_run_of(settings, 4)
    sent = dry_run.round(1)
    assert sent.bytes == {
        "pairs": 12 * 40 * 8, "gradients": 6 * (40 + 4) * 8, "mixing": 12 * (40 + 1) * 8,
    }  # fmt: skip
    assert sent.messages == {"pairs": 12, "gradients": 24, "mixing": 24}
    assert dry_run_of(settings, 1).round(1).total == 0


def test_what_other_weights_cost() -> None:
    """8 clients in pairs of 2 on 4 ranks of 2: clusters lie inside ranks; any W sends 2 models a link."""
    d = 1360
    for domain, told in (("box", 0), ("simplex", 12 * 4 * 4)):
        dry_run = dry_run_of([*SMALL, f"algorithm.domain={domain}"], 4)
        sent = {name: mixing.total for name, mixing in dry_run.other_mixing().items()}
        assert sent == {"W = true clusters": told, "any W, at most": 12 * 2 * d * 4 + told}
    assert dry_run_of(["algorithm.name=oracle", *SMALL], 4).other_mixing() == {}


@pytest.mark.parametrize(
    "settings",
    [
        ["run.rounds=0"],
        ["run.rounds=7"],
        ["run.rounds=20000", "algorithm.sampling.name=time"],
        ["run.rounds=100", "algorithm.name=finetuned_fedavg", "algorithm.fedavg_share=0.33"],
        ["run.rounds=100", "algorithm.name=validation_based", "algorithm.every=7"],
        ["run.rounds=100", "algorithm.name=validation_based", "algorithm.every=700"],
        ["run.rounds=100", "algorithm.name=fedavg"],
        ["run.rounds=19", "algorithm.selection=difference"],
        ["run.rounds=100", "algorithm.selection=difference"],
    ],
)
def test_rounds_stand_for_all_rounds(settings: list[str]) -> None:
    config: Config = load_config(None, settings)
    rounds = max(1, config.run.rounds)
    found = config.algorithm.representative_rounds(rounds)
    assert sum(count for _, count in found) == rounds
    assert all(0 <= t < rounds for t, _ in found)
    assert [t for t, _ in found] == sorted({t for t, _ in found})
    assert len(found) < 120


def test_the_mean_over_rounds() -> None:
    """Time-dependent: 28 pairs with probability 1/t in round t; FedAvg in 3 of 10 rounds; 1 of 4."""
    time = dry_run_of(["algorithm.sampling.name=time", "run.rounds=400", *SMALL[:1]], 2)
    expected = 28 * sum(1 / t for t in range(1, 401)) / 400  # 0.46
    assert mean_of(time).pairs == pytest.approx(expected, rel=0.4)
    short = dry_run_of(["run.rounds=40", *SMALL[:1]], 2)
    every = [short.round(r).pairs for r in range(1, 41)]
    assert mean_of(short).pairs == pytest.approx(np.mean(every)), "so few rounds are all counted"
    averaging = ["algorithm.name=finetuned_fedavg", "algorithm.fedavg_share=0.3", "run.rounds=10"]
    some = mean_of(dry_run_of([*averaging, *SMALL[:1]], 2))
    assert some.total == pytest.approx(0.3 * 2 * 1360 * 4)
    assert some.messages["mixing"] == pytest.approx(0.6)


# -- memory ------------------------------------------------------------------------------------------


NARROW = mock.patch.multiple("cobo_dist.maths.flat", _MAX_NUMBERS=1, _MIN_COLUMNS=16)
"""Sums of few columns at a time, as models of millions of parameters have."""


@NARROW
def held(session: Session, settings: list[str], rounds: int) -> dict[str, int]:
    """Go some rounds; return the bytes that this rank's clients and exchange keep."""
    config = load_config(None, [*QUIET, *settings])
    problem = prepare(config, session.launch).agree(session)
    parts = build_learner(config, session, problem, PhaseTimer.off())
    parts.clients.use_engine("one_by_one")
    for t in range(rounds):
        parts.algorithm.round(t)
    clients, exchange = parts.clients, parts.exchange

    def total(*tensors: torch.Tensor) -> int:
        return sum(one.untyped_storage().nbytes() for one in tensors)

    optimizer = [one for one in clients.optimizer.state().values() if one.is_floating_point()]
    scratch, wire, scalars = (
        exchange._channel.scratch,
        exchange._channel.wire,
        exchange._pairwise_dot._scalars,
    )
    return {
        "models": total(clients.x_cd, clients.b_cd),
        "optimizer": total(*optimizer),
        "gradients": total(clients.g_cd),
        "gradients elsewhere": total(*clients._scratch._rows.values(), clients.engine._spare_1d),
        "exchange": total(
            *scratch._rows.values(),
            *scratch._flat.values(),
            *wire._flat.values(),
            *scalars._flat.values(),
        ),
        "weights": parts.algorithm.weights.nbytes,
    }


@pytest.mark.parametrize(
    "settings",
    [
        ["algorithm.gamma=0", "algorithm.sampling.rate=4", "optimizer.name=adamw"],
        ["algorithm.gamma=0", "algorithm.domain=simplex", "algorithm.sampling.name=all"],
        ["algorithm.gamma=0", "comm.deterministic=true"],
        ["algorithm.gamma=0", "comm.dtype=bfloat16", "algorithm.sampling.name=all"],
        ["algorithm.name=fedavg", "optimizer.name=ema_momentum", "optimizer.momentum=0.9"],
        ["algorithm.name=fedavg", "comm.dtype=bfloat16"],
        ["algorithm.name=oracle", NORM, "algorithm.buffers=averaged"],
        ["algorithm.name=ditto"],
    ],
)
@NARROW
def test_every_rank_holds_what_was_planned(pool: RankPool, settings: list[str]) -> None:
    settings = [*SMALL, *settings]
    found = pool.run(3, held, settings, 3)
    dry_run = dry_run_of(settings, 3)
    for r in (1, 2, 3):
        dry_run.round(r)
    for rank, real in enumerate(found):
        parts = {part.name: part.bytes for part in dry_run.memory_of(rank)}

        def planned(*beginnings: str, parts: dict[str, int] = parts) -> int:
            return sum(held for name, held in parts.items() if name.startswith(beginnings))

        assert real == {
            "models": planned("models, "),
            "optimizer": planned("optimizer"),
            "gradients": parts["gradients"],
            "gradients elsewhere": planned("gradients at midpoints"),
            "exchange": planned("midpoints", "sums of models", "messages"),
            "weights": planned("weights"),
        }, rank


def test_what_else_a_rank_holds() -> None:
    """Ditto's global model and momentum; 1797 images of 64 numbers; batches of 32."""
    settings = [*SMALL, "algorithm.name=ditto", "optimizer.momentum=0.9"]
    parts = {part.name: part.bytes for part in dry_run_of(settings, 4).memory()}
    assert parts["models of no client, and their optimizer"] == 2 * 1360 * 4
    assert parts["data, once"] == 1797 * (64 * 4 + 8) + 8 * 10 * 8
    assert parts["batches"] == 2 * 32 * (64 * 4 + 8)


# -- the command -------------------------------------------------------------------------------------


def test_the_command_prints_all_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ranks=4", *SMALL]) == 0
    said = capsys.readouterr().out
    for words in (
        "8 in 4 clusters", "1,360 parameters", "130 examples a client", "4, with 2 clients each",
        "round 1 ", "mean of 4 rounds ", "mean round, most ", "W = true clusters ",
        "any W, at most ", "counted ",
    ):  # fmt: skip
        assert words in said, words
    assert "drawn" not in said
    assert "est." not in said
    # W^0 = 1: one model for each ordered pair of ranks, 12 * 5440 bytes.
    line, of_client = (line for line in said.splitlines() if line.startswith("round 1 "))
    # 7 models for the mix; 4 ends of 2 pairs for 8 clients, each a model, half a gradient and 2 numbers.
    assert of_client.split() == ["round", "1", "42.2", "kB", "42.2", "kB"]
    assert line.split()[-4:-2] == ["65.3", "kB"]
    assert "free on this host for each of 4 rank(s)" in said
    assert "too little memory" not in said
    monkeypatch.setattr(plan_output, "free_memory", lambda ranks: 1_000)
    assert main(["ranks=4", *SMALL]) == 0
    assert "warning: this host has too little memory" in capsys.readouterr().out
    assert main(["ranks=1000", "clients=1000", *SMALL]) == 0
    assert "on this host" not in capsys.readouterr().out, "so many ranks run elsewhere"
    assert main(["ranks=3", *SMALL, "algorithm.name=fedavg"]) == 0
    assert "2 or 3 clients each" in capsys.readouterr().out
    assert main(["task.clusters=1", "task.clients_per_cluster=1", *SMALL]) == 0
    assert "1, with 1 clients each" in capsys.readouterr().out, "no more ranks than clients"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ranks=0"], "ranks=0 is no number of ranks"),
        (["ranks=two"], "ranks=two is no number of ranks"),
        (["ranks=9"], "9 ranks for 8 clients"),
        (["clients=3", "ranks=4"], "4 ranks for 3 clients"),
        (["clients=0"], "clients=0 is no number of clients; give 1 to"),
        (["clients=20000", "algorithm.sampling.name=all"], "about 199,990,000 times"),
        (["clients=20000", "algorithm.domain=simplex"], "about 400,000,000 times"),
        (
            ["clients=20000", "algorithm.name=federated_clustering"],
            "algorithm.name=federated_clustering",
        ),
        (["rank=2"], "rank"),
        (["task.name=quadratic"], "task.file is not set"),
        (["algorithm.name=validation_based", "task.validation_fraction=0"], "validation"),
    ],
)
def test_what_cannot_be_planned(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_a_task_that_does_not_fit_is_refused_first(tmp_path: Path) -> None:
    problem = write_quadratic(tmp_path / "problem.npz", clients=3)
    settings = ["task.name=quadratic", f"task.file={problem}", "algorithm.name=oracle"]
    with pytest.raises(ConfigError, match="needs a task with known clusters"):
        dry_run_of(settings, 2)
