"""How often the host waits for a GPU in a round, and how many kernels it launches: counted, with a bound.

The counts are those of one rank on the virtual CUDA. They depend on the number of clients and layers, and not
on the size of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from device_counts import counts_of_run
from methods import settings_of
from problems import write_texts
from virtual_cuda import Counts, counted, virtual_cuda
from vision_data import write_images

from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.transports.base import SoloTransport
from cobo_dist.maths.weights import Weights

SHORT = ("run.rounds=2", "run.eval_every=0", "run.log_weights_every=0", "run.engine=vectorised")

SMALL = ("model.norm=batch", "data.batch_size=4", "model.hidden=[8]")


def counts_of_round(folder: Path, arguments: Sequence[str]) -> Counts:
    """Return the counts of the second round: the first also prepares what later rounds use again."""
    return counts_of_run([*SHORT, *arguments, f"run.dir={folder / 'run'}"])["round"][1]


def digits(algorithm: str, *more: str) -> list[str]:
    return [*settings_of(algorithm), "task.validation_fraction=0.2", *more]


@pytest.mark.parametrize(
    ("arguments", "syncs", "kernels"),
    [
        (digits("ifca"), 1, 220),
        (digits("ifca", "model.norm=batch"), 1, 400),
        (digits("ifca", "algorithm.client_share=0.5"), 1, 170),
        (digits("ifca", "run.engine=one_by_one"), 1, 600),
        (digits("validation_based"), 1, 320),
        (digits("validation_based", "run.engine=one_by_one"), 1, 900),
        (digits("validation_based", "model.norm=batch", "algorithm.buffers=averaged"), 1, 590),
        (digits("federated_clustering"), 3, 150),
        (digits("federated_clustering", "run.engine=one_by_one"), 3, 110),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_a_round_of_eight_digits_clients(
    tmp_path: Path, arguments: list[str], syncs: int, kernels: int
) -> None:
    counts = counts_of_round(tmp_path, arguments)
    assert counts.syncs.total() <= syncs, counts.describe()
    assert counts.kernels.total() <= kernels, counts.describe()


RESNETS = [
    "task.name=cross_silo", "model.name=resnet9", "model.width=2", "data.batch_size=4",
    "task.clients_per_cluster=2", "optimizer.name=adamw", "optimizer.lr=0.001",
]  # fmt: skip


@pytest.mark.parametrize(("writing", "syncs"), [("auto", 0), ("foreground", 8)])
def test_state_is_copied_in_whole_rows(tmp_path: Path, writing: str, syncs: int) -> None:
    """Checkpoints in the background wait for no copy, else once for each client, as the models at the end."""
    images = write_images(tmp_path / "images.npz", train=80, test=20, size=8)
    counts = counts_of_run(
        [*SHORT, *RESNETS, f"data.file={images}", "algorithm.name=local", "run.checkpoint_every=1",
         f"run.checkpoint_writing={writing}", f"run.dir={tmp_path / 'run'}"]
    )  # fmt: skip
    bounds = {"checkpoint": syncs, "evaluation": 1, "check of models": 1, "models at the end": 8}
    for part, most in bounds.items():
        assert len(counts[part]) == (1 if part == "models at the end" else 2)
        for one in counts[part]:
            assert one.syncs.total() <= most, f"{part}: {one.describe()}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_algorithm_waits_for_each_client(tmp_path: Path, algorithm: str) -> None:
    counts = counts_of_round(tmp_path, digits(algorithm, *SMALL))
    assert counts.syncs.total() <= 3, counts.describe()


@pytest.mark.parametrize("algorithm", ["fedavg", "cobo"])
@pytest.mark.parametrize(
    "options",
    [
        ["run.on_nan=skip_client", "local.steps=2", "participation.count=3"],
        ["local.epochs=1", "local.clip_norm=1", "data.batch_size=50"],
    ],
    ids=["skipped gradients", "epochs"],
)
def test_no_option_waits_for_each_client(
    tmp_path: Path, algorithm: str, options: list[str]
) -> None:
    counts = counts_of_round(tmp_path, digits(algorithm, *SMALL, *options))
    assert counts.syncs.total() <= (algorithm == "cobo"), counts.describe()


@pytest.mark.parametrize("keep", ["best", "uniform"])
def test_models_are_kept_without_waiting(tmp_path: Path, keep: str) -> None:
    both = "run.eval_splits=[validation,test]"
    run = [
        *SHORT,
        *digits("local", *SMALL, f"run.keep={keep}", both),
        f"run.dir={tmp_path / 'run'}",
    ]
    kept = counts_of_run(run)["keeping models"]
    assert kept
    for counts in kept:
        assert counts.syncs.total() == 0, counts.describe()


def test_a_language_model_launches_few_kernels_for_dropout(tmp_path: Path) -> None:
    """Nothing is read. Four adapters in each of 6 layers drop their inputs, for each of 3 clients.

    To apply a mask takes two kernels; layers draw their masks together, at most two kernels for each.
    """
    texts = write_texts(tmp_path / "texts")
    language = [
        "task.name=language", "model.name=tiny-gpt2", "model.width=8", "model.layers=6", "task.context=8",
        "data.batch_size=2", "task.languages=[]", f"data.text_dir={texts}", f"data.root={tmp_path}",
        "algorithm.name=local", "run.rounds=2", "run.eval_every=0", "run.log_weights_every=0",
        "run.cuda_graphs=off",  # which would count as one launch
        f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    counts = counts_of_run(language)
    (first, second), evaluations = counts["round"], counts["evaluation"]
    assert first.syncs.total() == second.syncs.total() == 0, second.describe()
    assert all(one.syncs.total() == 1 for one in evaluations), evaluations[0].describe()
    files = ("maths/seeds.py", "tasks/language/dropout.py")
    found = sum(count for where, count in second.kernels.items() if where.startswith(files))
    assert found <= (2 + 2) * 4 * 6 * 3, second.describe(20)


def test_more_clients_and_centers_do_not_wait_more(tmp_path: Path) -> None:
    many = [
        "task.clusters=10",
        "task.clients_per_cluster=8",
        "model.hidden=[8]",
        "data.batch_size=2",
    ]
    counts = counts_of_round(tmp_path, digits("ifca", *many))
    assert counts.syncs.total() <= 1, counts.describe()
    assert counts.kernels.total() <= 400, counts.describe()


def cobo(folder: Path, engine: str, rounds: int) -> list[Counts]:
    """Return the counts of CoBo's rounds with 8 clients of a small ResNet-9."""
    images = write_images(folder / "images.npz")
    settings = [
        "task.name=cross_silo", f"data.file={images}", "model.name=resnet9", "model.width=4",
        "data.batch_size=4", "task.clients_per_cluster=2", "algorithm.name=cobo",
        f"run.engine={engine}", "run.eval_every=0", "run.log_weights_every=0",
        f"run.rounds={rounds}", f"run.dir={folder / 'run'}",
    ]  # fmt: skip
    return counts_of_run(settings)["round"]


def test_cobo_waits_once_a_round_and_launches_little_beside_its_graphs(tmp_path: Path) -> None:
    """The products of alignment are what the host must know: W is updated there."""
    rounds = cobo(tmp_path, "one_by_one", 8)
    assert all(one.syncs.total() <= 1 for one in rounds[1:]), rounds[-1].describe()
    # Graphs replay a pass for each gradient, and the making of the two batches. Rounds with more pairs than
    # any before record their passes anew.
    usual = [one for one in rounds if one.kernels.total() < 100]
    assert len(usual) >= 4
    for counts in usual:
        assert counts.outside_graphs <= 20, counts.describe(20)


def test_cobo_vectorised(tmp_path: Path) -> None:
    counts = cobo(tmp_path, "vectorised", 2)[1]
    assert counts.syncs.total() <= 1, counts.describe()
    assert counts.kernels.total() <= 1_000, counts.describe(20)


@pytest.mark.parametrize("w", ["all ones", "clusters", "any"])
def test_mixing_many_models_of_a_rank(w: str) -> None:
    """One piece of 256 MB: a few launches, and no waiting even where W is new."""
    clients, size = 80, 50_000
    groups = tuple(i // 8 for i in range(clients)) if w == "clusters" else (0,) * clients
    weights = Weights(tuple(range(clients)), groups, symmetric=True)
    if w == "any":
        w_nn = np.random.default_rng(0).random((clients, clients))
        weights = Weights.of_rows(range(clients), w_nn.astype(np.float32), symmetric=True)
    x_cd = torch.randn(clients, size)
    placement = Placement.contiguous(clients, 1)
    expected = torch.from_numpy(weights.dense()) @ x_cd
    with virtual_cuda():
        there = x_cd.to("cuda:0")
        exchange = Exchange(SoloTransport(), placement, torch.float32, torch.device("cuda", 0))
        with counted() as counts:
            pieces = [(at, mixed.clone()) for at, mixed in exchange.mix(weights, there)]
        found = torch.cat([mixed for _, mixed in pieces], dim=1).cpu()
    assert len(pieces) == 1
    assert counts.syncs.total() == 0, counts.describe()
    assert counts.kernels.total() <= 12, counts.describe()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
