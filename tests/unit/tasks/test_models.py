"""Every classifier that is registered: where it starts, its gradients, both engines, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pool import RankPool
from problems import QUIET, models, train
from torch import nn

from cobo_dist.cli.train import main
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.registry import BUILT_IN, register
from cobo_dist.results.run import open_run
from cobo_dist.tasks.labeled import Classification
from cobo_dist.tasks.models import build_model
from cobo_dist.tasks.registry import build_task
from cobo_dist.tasks.sections import ModelSection

CPU = torch.device("cpu")
SMALL = {
    "linear": (), "mlp": ("norm=batch", "hidden=[6]"), "cnn": ("width=2", "hidden=8", "padding=0"),
    "resnet9": ("width=2",), "torchvision": ("network=shufflenet_v2_x0_5",),
    "timm": ("network=vit_tiny_patch16_224",
             "options=[img_size=16, patch_size=8, depth=1, embed_dim=12, num_heads=2]"),
    "vit": ("patch=8", "width=8", "layers=1", "heads=2"), "lstm": ("embedding=4", "width=6"),
    "gru": ("embedding=4", "width=6", "layers=2"), "hf": ("width=8", "layers=1"),
}  # fmt: skip
ONE_BY_ONE = {"lstm": "aten::lstm", "gru": "aten::gru", "hf": "data-dependent control flow"}
"""Models without a vectorised pass, and what its refusal says."""
INVARIANT = ("key.bias",)
"""Adding the same number to all keys changes no softmax, so the gradient of this bias is rounding."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and texts of four clients and three classes."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    labels = np.arange(72) % 3
    images = rng.integers(0, 120, size=(72, 16, 16, 3)) + 60 * labels[:, None, None, None]
    np.savez(folder / "images.npz", x_train=images.astype(np.uint8), y_train=labels)
    texts = ["".join(rng.choice(list("abcdefghi")[3 * k : 3 * k + 3], size=9)) for k in labels]
    table = pd.DataFrame({"text": texts, "label": labels, "client": np.arange(72) // 18})
    table.to_csv(folder / "texts.csv", index=False)
    return folder


def settings_of(name: str, data: Path) -> list[str]:
    """Return the settings of a small run with a model."""
    if {"timm": "timm", "hf": "transformers"}.get(name):
        pytest.importorskip({"timm": "timm", "hf": "transformers"}[name])
    text = register.model[name].section.takes_text  # type: ignore[union-attr]
    source = ("text", data / "texts.csv") if text else ("npz", data / "images.npz")
    more = ["task.source.length=12"] if text else ["task.partition.clients=4"]
    return [
        "task.name=classification", f"task.source.name={source[0]}", f"task.source.file={source[1]}",
        f"task.partition.name={'by_column' if text else 'iid'}", *more, f"model.name={name}",
        *(f"model.{one}" for one in SMALL[name]), "data.batch_size=6", "run.threads=1",
        "run.rounds=2", "optimizer.lr=0.01", "algorithm.sampling.name=all", *QUIET,
    ]  # fmt: skip


def task_of(settings: list[str]) -> Classification:
    config = load_config(None, settings)
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    assert isinstance(task, Classification)
    return task


def refusal(settings: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """Return the one line with which a run is refused, before it has a folder."""
    assert main([*settings, f"run.dir={folder}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not folder.exists()
    return line


def test_every_registered_classifier_is_tested() -> None:
    """Language models have tests of their own."""
    known = {
        name
        for name, one in register.model.items()
        if one.source == BUILT_IN and one.section.kind == "classifier"  # type: ignore[union-attr]
    }
    assert known == {*SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_the_start_follows_from_the_seed_alone(name: str, data: Path) -> None:
    """Whatever PyTorch's global generator did before, and without touching it."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = task_of(settings_of(name, data)).start()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    task = task_of(settings_of(name, data))
    again, other = task.start(), task.start(1)
    assert all(torch.equal(again[key], value) for key, value in one.items())
    assert any(not torch.equal(other[key], value) for key, value in one.items())


@pytest.mark.parametrize("name", SMALL)
def test_every_trained_tensor_has_a_gradient_within_two_rounds(name: str, data: Path) -> None:
    config = load_config(None, settings_of(name, data))
    clients = ClientBatch(
        range(4),
        task_of(settings_of(name, data)),
        config.optimizer,
        dtype=torch.float32,
        device=CPU,
    )
    seen = torch.zeros_like(clients.x_cd, dtype=torch.bool)
    for t in range(2):
        clients.gradients(t)
        seen |= clients.g_cd.abs() > 1e-12
        clients.x_cd.add_(clients.direction(), alpha=-0.1)
    for key, one in clients.layout.views(seen).items():
        if not key.endswith(INVARIANT):
            assert one.flatten(1).any(dim=1).all(), key


@pytest.mark.parametrize("name", SMALL)
def test_both_engines_on_one_and_two_ranks_give_the_same(
    name: str, data: Path, pool: RankPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the engine says in one line why it cannot, and `auto` takes the other one."""
    found = {}
    # BatchNorm over few numbers magnifies what is rounded, so in float64.
    settings = [*settings_of(name, data), "run.dtype=float64"]
    for engine in ("one_by_one", "auto" if name in ONE_BY_ONE else "vectorised"):
        for ranks in (1, 2):
            folder = tmp_path / f"{engine}-{ranks}"
            given = [*settings, f"run.engine={engine}", f"run.dir={folder}"]
            assert pool.run(ranks, train, given) == [0] * ranks
            found[folder.name] = models(folder)
    if name in ONE_BY_ONE:
        environment = json.loads((folder / "env.json").read_text())
        assert environment["engine"] == "one_by_one"
        assert ONE_BY_ONE[name] in environment["engine_choice"]
        line = refusal([*settings, "run.engine=vectorised"], capsys, tmp_path / "refused")
        assert ONE_BY_ONE[name] in line
        assert f"run.engine=vectorised cannot compute gradients of model.name={name}" in line
    first = found.pop("one_by_one-1")
    for key, one in task_of(settings).start().items():
        assert np.abs(first[f"client_00000/{key}"] - one.numpy()).max() > 0, key
    for other in found.values():
        for key, one in first.items():
            np.testing.assert_allclose(other[key], one, rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_model_predicts_what_the_run_said(name: str, data: Path, tmp_path: Path) -> None:
    """From the source's own inputs: bytes of images, or texts."""
    settings = [*settings_of(name, data), "run.rounds=8", f"run.dir={tmp_path / 'run'}"]
    assert main(settings) == 0
    run, task = open_run(tmp_path / "run"), task_of(settings)
    with np.load(data / "images.npz") as arrays:
        inputs = list(arrays["x_train"])
    if task.examples.text:
        inputs = pd.read_csv(data / "texts.csv")["text"].tolist()
    for client, result in enumerate(run.summary["per_client"]):
        own = task.split_of["test"][client].tolist()
        given = [inputs[i] for i in own]
        found = run.model(client).predict(given if task.examples.text else np.stack(given))
        right = (found == task.examples.targets[own]).double().mean()
        assert float(right) == pytest.approx(result["accuracy"])


# -- single models -------------------------------------------------------------------------------------


@pytest.fixture
def plugin() -> Iterator[None]:
    """Forget what a test registers."""
    yield
    register.forget(__name__)


def size_of(name: str, shape: tuple[int, ...], classes: int, **keys: object) -> int:
    section = register.model[name].section
    assert section is not None
    model = build_model(section(**keys), torch.Size(shape), classes, 0)  # type: ignore[arg-type]
    return sum(one.numel() for one in model.parameters())


def test_sizes_of_known_networks() -> None:
    """The CNN without padding is PFLlib's; ResNet-18 and MobileNetV3 as torchvision documents them."""
    assert size_of("cnn", (3, 32, 32), 100, padding=0) == 924_708
    assert size_of("linear", (1, 28, 28), 10) == 7_850
    assert size_of("torchvision", (3, 32, 32), 1000) == 11_689_512
    assert size_of("torchvision", (3, 32, 32), 1000, network="mobilenet_v3_small") == 2_542_856


def test_images_with_one_channel_reach_library_networks() -> None:
    color = size_of("torchvision", (3, 32, 32), 10)
    assert color - size_of("torchvision", (1, 32, 32), 10) == 2 * 64 * 7 * 7
    assert size_of("vit", (3, 28, 28), 10) - size_of("vit", (1, 28, 28), 10) == 2 * 64 * 4 * 4


def test_a_function_is_a_model_with_its_arguments_as_keys(plugin: None, tmp_path: Path) -> None:
    @register.model("tiny")
    def tiny(shape: torch.Size, classes: int, hidden: int = 3) -> nn.Module:
        """A hidden layer."""
        return nn.Sequential(
            nn.Flatten(), nn.Linear(shape.numel(), hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    assert tiny(torch.Size([2]), 2)[1].out_features == 3
    settings = ["task.name=digits", "model.name=tiny", "model.hidden=7", "run.rounds=1", *QUIET]
    assert main([*settings, f"run.dir={tmp_path / 'run'}"]) == 0
    assert models(tmp_path / "run")["client_00000/1.weight"].shape == (7, 64)
    assert open_run(tmp_path / "run").model(0)(torch.zeros(2, 64)).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"model\.hiden"):
        load_config(None, ["model.name=tiny", "model.hiden=7"])
    with pytest.raises(ConfigError, match=r"takes a class derived from .*or a function"):
        register.model("wrong")(lambda shape: None)


def test_weights_from_a_file(data: Path, tmp_path: Path) -> None:
    """Layers of the same shape take them, others start from the seed."""
    config = {"network": "shufflenet_v2_x0_5"}
    section = register.model["torchvision"].section
    assert section is not None
    source = build_model(section(**config), torch.Size([3, 32, 32]), 7, seed=5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    given = section(**config, weights=str(tmp_path / "weights.pth"))
    model = build_model(given, torch.Size([3, 32, 32]), 4, seed=0)
    plain = build_model(section(**config), torch.Size([3, 32, 32]), 4, seed=0)
    for key, one in model.state_dict().items():
        expected = (plain if key.startswith("fc.") else source).state_dict()[key]
        assert torch.equal(one, expected), key


class _Dropping(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(x.flatten(1)))


class _Log(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


REFUSED = {
    "drops": (lambda shape, classes: _Dropping(shape.numel(), classes),
              r"global generator in training \(drop\).*set its dropout to 0"),
    "pair": (lambda shape, classes: nn.GRU(shape.numel(), classes),
             r"returned tuple for 8 inputs and 10 classes; return logits of shape \[8, 10\]"),
    "short": (lambda shape, classes: nn.Linear(shape.numel(), 3),
              r"returned \[8, 3\] for 8 inputs and 10 classes"),
    "no_network": (lambda shape, classes: None, "returned NoneType; return a torch.nn.Module"),
    "lazy": (lambda shape, classes: nn.Sequential(nn.Flatten(), nn.LazyLinear(classes)), "has lazy layers"),
    "lazy_norm": (lambda shape, classes: nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(affine=False)),
                  "has lazy layers"),
    "nan": (lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(shape.numel(), classes), _Log()),
            "returned NaN or infinite logits for 8 examples before any training"),
    "fails": (lambda shape, classes: nn.Linear(5, 3), r"cannot take inputs of shape \[64\]: "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_train_is_refused_before_the_run_folder_is_made(
    name: str, plugin: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = REFUSED[name]

    class Wrong(ModelSection):
        def build(self, shape: torch.Size, classes: int) -> nn.Module:
            return make(shape, classes)

    register.model(name)(Wrong)
    line = refusal(["task.name=digits", f"model.name={name}"], capsys, tmp_path / "run")
    assert f"model.name={name}" in line
    assert re.search(words, line), line


IMAGES = ("task.name=classification", "task.partition.clients=4", "run.rounds=1", *QUIET)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["data.batch_size=1", "model.norm=batch"], ("data.batch_size=1 gives client 0, which",)),
        (["data.batch_size=2", "data.accumulation=157", "local.epochs=1", "model.norm=batch"],
         ("data.batch_size=2 gives client 0, which has 315 training examples",)),
        (["data.batch_size=1", "model.name=torchvision"], ("Expected more than 1 value",)),
    ],
)  # fmt: skip
def test_batchnorm_with_a_batch_of_one_is_refused(
    given: list[str], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal([*IMAGES, *given], capsys, tmp_path / "run")
    assert all(one in line for one in words), line


def test_a_client_with_one_example_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole epoch of it is a batch of one; without BatchNorm it trains."""
    rng = np.random.default_rng(0)
    owner = np.r_[np.zeros(20, int), np.ones(2, int), np.full(20, 2)]
    np.savez(
        tmp_path / "d.npz",
        x_train=rng.normal(size=(42, 3)),
        y_train=np.arange(42) % 2,
        client=owner,
    )
    settings = [
        "task.name=classification", "task.source.name=npz", f"task.source.file={tmp_path / 'd.npz'}",
        "task.partition.name=by_column", "task.validation_fraction=0", "local.epochs=1",
        "run.rounds=1", "data.batch_size=8", "algorithm.name=fedavg", *QUIET,
    ]  # fmt: skip
    line = refusal([*settings, "model.norm=batch"], capsys, tmp_path / "run")
    assert "data.batch_size=8 gives client 1, which has 1 training example, such a batch" in line
    assert main([*settings, f"run.dir={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.name=torchvision", "model.network=resnet81"], "nearest: resnet18"),
        (["model.name=torchvision", "model.options=[nope=1]"], "change the options or the network"),
        (["model.name=torchvision", "model.options=[nope]"], "'nope' is no name=value"),
        (["model.name=torchvision", "model.options=[num_classes=3]"], "the labels decide it; drop"),
        (["model.name=torchvision", "model.options=[weights=DEFAULT]"], "model.weights sets it"),
        (["model.name=torchvision", "model.network=alexnet"], "cannot take inputs of shape"),
        (["model.name=torchvision", "model.weights=/nope.pth"], "give the path of a file"),
        (["model.name=vit", "model.patch=3"], "model.patch=3 does not divide images of 8 x 8"),
        (["model.name=vit", "model.heads=3", "model.patch=2"], "model.heads=3 does not divide"),
        (["model.name=cnn", "model.padding=0"], "model.padding=0: of images of 8 x 8 pixels"),
        (["model.name=lstm"], "model.name=lstm takes text, and this task's inputs are numbers"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_refused(
    settings: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal([*IMAGES, *settings], capsys, tmp_path / "run")
