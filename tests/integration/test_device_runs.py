"""Whole runs on the virtual CUDA: nothing leaves the device unasked, and the numbers are those of the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from device_counts import train_alone
from methods import settings_of
from pool import VirtualCudaPool
from problems import rows, train, write_quadratic, write_texts
from safetensors.numpy import load_file
from virtual_cuda import virtual_cuda
from vision_data import write_images

from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.checkpoint.writer import PendingCheckpoint
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.channel import Channel
from cobo_dist.comm.session import Session
from cobo_dist.errors import RunFailure

ENGINES = ("one_by_one", "vectorised")
SHORT = ("run.rounds=2", "run.eval_every=0")


@pytest.fixture(scope="module")
def cuda_pool() -> Iterator[VirtualCudaPool]:
    """Two ranks, each with a virtual GPU of its own; a single rank uses the first."""
    pool = VirtualCudaPool(2)
    yield pool
    pool.close()


def assert_close(folder: Path, reference: Path, tolerance: float = 2e-5) -> None:
    """Compare models, W and losses up to the rounding of sums."""
    mine, theirs = (
        {
            f"{path.relative_to(one)}/{name}": value
            for path in sorted((one / "models").rglob("*.safetensors"))
            for name, value in load_file(path).items()
        }
        for one in (folder, reference)
    )
    assert mine.keys() == theirs.keys()
    assert mine
    for name, value in mine.items():
        np.testing.assert_allclose(value, theirs[name], tolerance, tolerance, err_msg=name)
    a, b = np.load(folder / "W.npz"), np.load(reference / "W.npz")
    # Some weights are quotients of differences between losses, which magnify rounding (FedFomo).
    np.testing.assert_allclose(a["weights"], b["weights"], 0, max(tolerance, 1e-4))
    for event in ("round", "eval"):
        losses = [[row["loss"] for row in rows(one, event)] for one in (folder, reference)]
        np.testing.assert_allclose(*losses, tolerance, tolerance)


def train_each(session: Session, runs: list[list[str]]) -> None:
    """Train one run after the other."""
    for arguments in runs:
        assert train(session, arguments) == 0


Compare = Callable[..., None]


@pytest.fixture
def compare(cuda_pool: VirtualCudaPool, tmp_path: Path) -> Compare:
    """Train the same on the CPU, and on one and on two virtual GPUs; the results must agree."""

    def check(*runs: list[str], ranks: tuple[int, ...] = (1, 2), tolerance: float = 2e-5) -> None:
        for number, arguments in enumerate(runs):
            train_alone("cpu", [*SHORT, *arguments, f"run.dir={tmp_path / f'cpu{number}'}"])
        for count in ranks:
            cuda_pool.run(
                count,
                train_each,
                [
                    [*SHORT, *arguments, f"run.dir={tmp_path / f'cuda{number}-{count}'}"]
                    for number, arguments in enumerate(runs)
                ],
            )
        for number in range(len(runs)):
            for count in ranks:
                folder = tmp_path / f"cuda{number}-{count}"
                ranks_of_run = json.loads((folder / "env.json").read_text())["ranks"]
                assert all("cuda" in one for one in ranks_of_run)
                assert_close(folder, tmp_path / f"cpu{number}", tolerance)

    return check


def digits(algorithm: str, *more: str) -> list[str]:
    return [
        "model.hidden=[8]", "model.norm=batch", "data.batch_size=4",
        "task.clusters=2", "task.clients_per_cluster=2", "task.validation_fraction=0.1",
        "optimizer.name=ema_momentum", "optimizer.momentum=0.5", *settings_of(algorithm), *more,
    ]  # fmt: skip


SHORTER = {"fedala": ["algorithm.first_passes=2", "algorithm.share=0.05"]}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_with_both_engines(compare: Compare, algorithm: str) -> None:
    keys = SHORTER.get(algorithm, [])
    compare(*(digits(algorithm, *keys, f"run.engine={engine}") for engine in ENGINES))


def test_an_algorithm_of_a_plugin_with_both_engines(compare: Compare) -> None:
    ring = digits("ring", f"plugins={Path(__file__).parents[1] / 'support/plugins/ring.py'}")
    compare(*([*ring, f"run.engine={engine}"] for engine in ENGINES))


def test_images_are_augmented_and_normalized_there(compare: Compare, tmp_path: Path) -> None:
    """ResNet-9 with channels last, random crops, dropout drawn on the host, and Adam's moments."""
    images = write_images(tmp_path / "images.npz", train=80, test=20, size=8)
    common = ["task.name=cross_silo", f"data.file={images}", "model.name=resnet9", "model.width=2",
              "task.clusters=2", "task.clients_per_cluster=2", "data.batch_size=4", "optimizer.name=adamw",
              "optimizer.lr=0.001", "algorithm.sampling.rate=3"]  # fmt: skip
    compare(*([*common, f"run.engine={engine}"] for engine in ENGINES), ranks=(2,), tolerance=2e-3)


def quadratic(folder: Path, *more: str) -> list[str]:
    problem = write_quadratic(folder / "problem.npz")
    return ["task.name=quadratic", f"task.file={problem}", "task.noise=0.1", *more]


def test_cobo_on_a_simplex_with_noise(compare: Compare, tmp_path: Path) -> None:
    simplex = quadratic(
        tmp_path, "algorithm.domain=simplex", "algorithm.sampling.name=all", "run.dtype=float64"
    )
    models_first = quadratic(
        tmp_path,
        "algorithm.order=models_first",
        "algorithm.alignment=cosine",
        "algorithm.penalty=fixed",
    )
    compare(simplex, models_first)


def test_selection_by_differences(compare: Compare) -> None:
    """Windows of gradients, their inner products on the device, and links that are cut."""
    robust = digits(
        "cobo", "preset=robust", "algorithm.difference.window=2", "algorithm.difference.tolerance=2",
        "run.rounds=7", "run.dtype=float64",
    )  # fmt: skip
    compare(*([*robust, f"run.engine={e}"] for e in ENGINES), [*robust, "participation.count=3"])


def test_bfloat16_autocast_and_messages(compare: Compare) -> None:
    """Matrix products in bfloat16; on two ranks models travel in it too, so numbers are only near."""
    cast = digits("cobo", "run.autocast=bfloat16")
    runs = [[*cast, f"run.engine={engine}"] for engine in ENGINES]
    compare(*runs, [*cast, "comm.dtype=bfloat16"], tolerance=5e-2)


def test_skipped_gradients(compare: Compare) -> None:
    compare(digits("fedavg", "run.on_nan=skip_client"), ranks=(1,))


def test_local_epochs_of_some_clients(compare: Compare) -> None:
    """Batches of several sizes, clipped and weighted, on copies of the models; CUDA graphs take part."""
    epochs = ("local.epochs=1", "local.clip_norm=1", "data.batch_size=50", "participation.count=3")
    compare(
        *(digits("fedavg", *epochs, "algorithm.weighting=examples", f"run.engine={engine}")
          for engine in ENGINES),
        digits("cobo", "local.steps=2", "participation.count=3", "run.on_nan=skip_client"),
    )  # fmt: skip


def test_language_adapters(compare: Compare, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra lm")
    pytest.importorskip("peft", reason="needs the extra lm")
    texts = write_texts(tmp_path / "texts")
    language = [
        "task.name=language", "model.name=tiny-gpt2", "model.width=8", "model.layers=1", "task.context=8",
        "data.batch_size=2", "task.languages=[]", f"data.text_dir={texts}",
        f"data.root={tmp_path}", "optimizer.name=adamw", "algorithm.domain=simplex",
        "algorithm.sampling.name=all", "data.eval_examples=2",
    ]  # fmt: skip
    compare(language, [*language, "run.autocast=bfloat16"], tolerance=2e-3)


@pytest.mark.parametrize("algorithm", ["cobo", "ifca"])
def test_a_resumed_run_continues_as_on_the_cpu(
    compare: Compare, cuda_pool: VirtualCudaPool, tmp_path: Path, algorithm: str
) -> None:
    """Checkpoints of the device are the same as those of the CPU, and are read back onto the device."""
    run = [*digits(algorithm), "run.checkpoint_every=1", "run.engine=vectorised"]
    compare([*run, "run.rounds=3"])
    for ranks in (1, 2):
        newest = tmp_path / f"cuda0-{ranks}" / "checkpoints" / "round-000000002"
        resumed = tmp_path / f"resumed-{ranks}"
        more = [f"run.resume={newest}", "run.rounds=3", f"run.dir={resumed}", "run.eval_every=0"]
        cuda_pool.run(3 - ranks, train_each, [[*run, *more]])
        assert_close(resumed, tmp_path / "cpu0")


class LastMomentWriter:
    """In place of the thread that writes a checkpoint: it begins when training waits for it."""

    def __init__(self, pending: PendingCheckpoint, files: Any) -> None:
        self.pending, self.files = pending, files

    def is_alive(self) -> bool:
        return True

    def join(self) -> None:
        self.pending.write(self.files)


def test_a_checkpoint_is_not_changed_by_the_rounds_that_follow_it(tmp_path: Path) -> None:
    """Its copies leave the device on a stream of their own, while training goes on."""

    def write_late(self: PendingCheckpoint, files: Any) -> None:
        self._thread = LastMomentWriter(self, files)  # type: ignore[assignment]

    run = [*digits("ifca"), "run.rounds=4", "run.checkpoint_every=2", "run.engine=vectorised"]
    run += ["run.keep_checkpoints=3"]
    for device in ("cpu", "cuda:0"):
        with ExitStack() as patches:
            if device != "cpu":
                patches.enter_context(virtual_cuda())
            patches.enter_context(
                mock.patch.object(PendingCheckpoint, "write_in_background", write_late)
            )
            train_alone(device, [*run, f"run.dir={tmp_path / device}"])
    reference = tmp_path / "cpu" / "checkpoints" / "round-000000002"
    files = sorted(reference.glob("*.safetensors"))
    assert files
    for path in files:
        mine = load_file(tmp_path / "cuda:0" / "checkpoints" / reference.name / path.name)
        for name, value in load_file(path).items():
            np.testing.assert_allclose(mine[name], value, 2e-5, 2e-5, err_msg=name)


def test_clients_move_between_devices(cuda_pool: VirtualCudaPool, tmp_path: Path) -> None:
    """Clusters lie across the ranks, so clients move as soon as W shows them."""
    run = [
        *digits("oracle"), "task.clients_per_cluster=4", "task.order=shuffled", "run.rounds=16",
        "run.eval_every=0", "comm.placement_every=4", "run.engine=vectorised",
    ]  # fmt: skip
    train_alone("cpu", [*run, f"run.dir={tmp_path / 'cpu'}"])
    cuda_pool.run(
        2, train_each, [[*run, "comm.placement=adaptive", f"run.dir={tmp_path / 'cuda'}"]]
    )
    assert rows(tmp_path / "cuda", "placement"), "nobody moved"
    assert_close(tmp_path / "cuda", tmp_path / "cpu", 1e-3)


# -- planted errors --------------------------------------------------------------------------------------


def planted(session: Session, arguments: list[str], fault: str) -> str:
    """Train with an error that only a GPU shows; return why the run ended."""
    compute, post = ClientBatch.gradients, Channel.post

    def gradients(self: ClientBatch, t: int, *rest: Any, **how: Any) -> torch.Tensor:
        losses = compute(self, t, *rest, **how)
        if fault == "mixed":
            self.g_cd.mul_(torch.ones(self.g_cd.shape))
        elif fault == "numpy":
            np.asarray(self.x_cd)
        return losses

    def post_and_change(self: Channel, sends: Any, *rest: Any) -> Any:
        pending = post(self, sends, *rest)
        for message in sends.values():
            if fault == "send buffer":
                message.add_(1)
        return pending

    changed = mock.patch.multiple(ClientBatch, gradients=gradients)
    with changed, mock.patch.multiple(Channel, post=post_and_change):
        try:
            train(session, arguments)
        except RunFailure as failure:
            return str(failure)
    return ""


@pytest.mark.parametrize(
    ("fault", "ranks", "words"),
    [
        ("none", 2, ""),
        ("mixed", 1, "mul_ of tensors on two devices"),
        ("numpy", 1, "numpy cannot read a tensor on the device"),
        ("send buffer", 2, "a send buffer was changed before wait"),
    ],
)
def test_a_planted_error_ends_the_run(
    cuda_pool: VirtualCudaPool, tmp_path: Path, fault: str, ranks: int, words: str
) -> None:
    arguments = [*digits("cobo"), *SHORT, f"run.dir={tmp_path / 'run'}", "run.engine=vectorised"]
    answers = cuda_pool.run_broken(ranks, planted, arguments, fault)
    assert all(words in answer for answer in answers), answers
    assert any(answers) == bool(words)
