"""Saved models give the scores of the summary in a fresh process: by `Run.model`, and in plain PyTorch.

The cases are all registered tasks and models, so that a new one is among them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import environment
from problems import QUIET, write_quadratic, write_texts
from safetensors import safe_open
from sklearn.datasets import load_digits
from vision_data import write_images

from cobo_dist.cli.train import main
from cobo_dist.config import load_config
from cobo_dist.errors import EXIT_DONE, EXIT_REFUSED
from cobo_dist.registry import BUILT_IN, register
from cobo_dist.results.run import open_run
from cobo_dist.storage.schema import ModelMetadata
from cobo_dist.tasks.classifier import Classifier, Regressor
from cobo_dist.tasks.registry import build_task

PAGE = Path(__file__).parents[2] / "docs" / "SAVED_MODELS.md"
SHORT = (
    *QUIET, "run.rounds=3", "run.eval_every=0", "run.threads=1", "run.checkpoint_every=0",
    "data.batch_size=4", "run.engine=one_by_one",
)  # fmt: skip
TASKS = {
    "cross_silo": ["data.file=images.npz", "model.width=4"],
    "cross_device": ["data.file=images.npz", "model.width=4", "task.cluster_sizes=[2, 2]",
                     "task.labels=modulo"],
    "language": ["model.name=tiny-gpt2", "data.text_dir=texts", "task.languages=[]",
                 "task.context=16", "data.root=cache"],
    "quadratic": ["task.file=problem.npz"],
}  # fmt: skip
"""What a task needs to be small, or to run at all; a task without an entry runs as it is."""
MODELS = {
    "classifier": ["task.name=classification", "task.source.name=npz", "task.source.file=images.npz",
                   "task.partition.clients=3", "data.augment=false"],
    "language": ["task.name=language", "data.text_dir=texts", "task.languages=[]", "task.context=16",
                 "data.root=cache"],
}  # fmt: skip
TEXTS = ["task.name=classification", "task.source.name=text", "task.source.file=texts.csv",
         "task.source.length=12", "task.partition.clients=3"]  # fmt: skip
OF_MODEL = {
    "hf": ["model.width=8", "model.layers=1"],
    "resnet9": ["model.width=4"],
    "gpt2": ["model.path=base", "model.tokenizer=bytes"],
    "causal-lm": ["model.path=base", "model.tokenizer=bytes"],
}


def built_in(kind: str) -> list[str]:
    return [name for name, one in register.kinds[kind].items() if one.source == BUILT_IN]


def settings_of(name: str) -> list[str]:
    """Return the data on which a model is trained: texts where it takes them."""
    section: Any = register.model[name].section
    return TEXTS if section.takes_text else MODELS[register.model[name].target.kind]


CASES = {f"task-{name}": [f"task.name={name}", *TASKS.get(name, ())] for name in built_in("task")}
CASES |= {
    f"model-{name}": [
        f"model.name={name}", *settings_of(name), *OF_MODEL.get(name, ())
    ]
    for name in built_in("model")
}  # fmt: skip

SCORE = """
    import json, sys
    import torch
    import cobo_dist
    from cobo_dist.tasks.registry import build_task

    for name in sys.argv[1:]:
        run = cobo_dist.open_run(name)
        config, model, dtype = run.config, run.model(0), getattr(torch, run.config.run.dtype)
        task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
        network = getattr(model, "network", model)
        sums, count, batches = {}, 0, []
        with torch.no_grad():
            for size, batch in task.evaluation(0, "test", torch.device("cpu")):
                for key, value in task.score(model, *batch).items():
                    sums[key] = sums.get(key, 0.0) + float(value)
                count += size
                batches.append((batch[0], network(batch[0]) if network is not model else None))
        print(json.dumps([name, task.means(sums, count)]))
        if network is not model:
            torch.save(batches, f"{name}.pt")
"""
"""Prints the scores of client 0's model of each run, and saves inputs and outputs of its network."""
PLAIN = """
    import sys
    import torch

    sys.modules["cobo_dist"] = None  # an import of it fails
    for way in sys.argv[1:]:
        names = {}
        exec(open(f"{way}.py").read(), names)
        for inputs, expected in torch.load(way.rpartition(".")[0] + ".pt"):
            with torch.no_grad():
                torch.testing.assert_close(names["network"](inputs), expected)
        print(way)
"""
"""Compares the outputs of each run's network, loaded by the lines of the docs, with those saved."""


def titles() -> dict[str, str]:
    """Return the sections of the page by title."""
    page = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))


def lines(title: str, run: str) -> list[str]:
    """Return the blocks of Python below a title of the page, for a run."""
    found = re.findall(r"^```python\n(.*?)^```$", titles()[title], re.MULTILINE | re.DOTALL)
    return [
        re.sub(r"runs/[a-z0-9-]+", run, text).replace("client.pt2", f"{run}.pt2") for text in found
    ]


def load_lines(run: str) -> tuple[str, str, str]:
    """Return the docs' lines that read a file, that make its network, and that fill it."""
    (load, _) = lines("In plain PyTorch", run=run)
    read, make, fill = re.split(r"^(network = .*\n)", load, flags=re.MULTILINE)
    return read, make, fill


def in_fresh_process(code: str, *arguments: str, folder: Path) -> str:
    """Run code in a new Python; return its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=folder,
        env=environment(PYTHONPATH=str(PAGE.parents[1])), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def metadata(folder: Path, run: str, client: int = 0) -> dict[str, Any]:
    """Return the metadata of a client's file."""
    path = folder / run / "models" / f"client_{client:05d}"
    path = path / "adapter_model.safetensors" if path.is_dir() else path.with_suffix(".safetensors")
    with safe_open(path, "pt") as file:
        found = dict(file.metadata())
    found.pop("format", None)
    return {name: json.loads(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data and a run of every case that this machine can train."""
    folder = tmp_path_factory.mktemp("models")
    write_images(folder / "images.npz", train=120, test=40)
    write_texts(folder / "texts")
    rows = [f"{'abc'[k % 3] * 9} ü{k},{k % 3}" for k in range(72)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    write_quadratic(folder / "problem.npz")
    write_base(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, settings in CASES.items():
            code = main([*SHORT, *settings, f"run.dir={name}"])
            assert code in (EXIT_DONE, EXIT_REFUSED), name
    return folder


def write_base(folder: Path) -> None:
    """Write a small GPT-2 as transformers keeps it, as a base of adapters."""
    transformers = pytest.importorskip("transformers", reason="needs the extra lm")
    torch.manual_seed(0)
    shape = transformers.GPT2Config(
        vocab_size=257,
        n_positions=32,
        n_layer=1,
        n_embd=16,
        n_head=2,
        bos_token_id=256,
        eos_token_id=256,
    )
    transformers.GPT2LMHeadModel(shape).save_pretrained(folder)


@pytest.fixture(scope="module")
def scores(folder: Path) -> dict[str, dict[str, float]]:
    """The scores of each run's client 0, by `Run.model` in a fresh process."""
    ran = [name for name in CASES if (folder / name / "summary.json").is_file()]
    printed = in_fresh_process(SCORE, *ran, folder=folder)
    return dict(json.loads(line) for line in printed.splitlines() if line.startswith("["))


@pytest.fixture(scope="module")
def plain(folder: Path, scores: dict[str, dict[str, float]]) -> set[str]:
    """The ways in which the docs load networks without cobo_dist, `RUN by WAY`, with the same outputs."""
    exports, ways = [], []
    for name in [name for name in scores if (folder / f"{name}.pt").is_file()]:
        about = metadata(folder, name)
        (read, make, fill) = load_lines(name)
        loads = {}
        if about["layers"] is not None:
            loads["layers"] = read + make + fill
        else:
            (export, load) = lines("Other networks", run=name)
            exports.append(export)
            loads["export"] = f"import torch\n{load}"
        if (title := f"`{about['model']['name']}` in plain PyTorch") in titles():
            loads["module"] = read + lines(title, run=name)[0] + fill
        for way, code in loads.items():
            (folder / f"{name}.{way}.py").write_text(code)
            ways.append(f"{name}.{way}")
    in_fresh_process("\n".join(exports), folder=folder)
    return set(in_fresh_process(PLAIN, *ways, folder=folder).split())


@pytest.mark.parametrize("name", CASES)
def test_models_score_in_a_fresh_process_what_the_summary_says(
    name: str, folder: Path, scores: dict[str, dict[str, float]], plain: set[str]
) -> None:
    if name not in scores:
        pytest.skip("this machine lacks a package or weights for it")
    summary = json.loads((folder / name / "summary.json").read_text())
    expected = {key: summary["per_client"][0][key] for key in summary["final"]}
    assert scores[name] == pytest.approx(expected, rel=1e-5)
    found = metadata(folder, name)
    assert set(found) == set(ModelMetadata.model_fields)
    assert found["task"] == summary["task"]
    assert found["metrics"] == list(summary["final"])
    config = open_run(folder / name).config
    if config.task.model_kind == "classifier":
        ways = {way for way in ("layers", "module", "export") if f"{name}.{way}" in plain}
        assert ways == {"layers"} if found["layers"] is not None else "export" in ways
        assert config.model.name != "resnet9" or "module" in ways
        assert found["model"] == config.model.model_dump(mode="json")
        assert found["layers"] is not None or config.model.name not in ("mlp", "cnn")


def test_every_task_and_classifier_ran(scores: dict[str, dict[str, float]]) -> None:
    """A skipped case needs a package or weights that are not part of cobo_dist's tests."""
    assert set(CASES) - set(scores) <= {"model-gguf"}


@pytest.mark.parametrize("client", [0, 7])
def test_plain_lines_predict_the_labels_of_the_data(client: int, folder: Path, scores: Any) -> None:
    """From the data's own inputs to the data's own labels, by the docs' functions and by `Run.model`."""
    names: dict[str, Any] = {}
    load, use = lines("In plain PyTorch", run=str(folder / "task-digits"))
    exec(load.replace("client_00000", f"client_{client:05d}") + use, names)
    pixels = load_digits().data
    found = names["predict"](pixels)
    model: Any = open_run(folder / "task-digits").model(client)
    assert found == model.predict(pixels).tolist()
    maps = [metadata(folder, "task-digits", one)["label_map"] for one in (0, 1, 7)]
    assert maps[0] == maps[1] != maps[2], "each cluster has a map of its own"


def test_plain_lines_take_images_as_bytes_and_score_as_the_summary(
    folder: Path, scores: Any
) -> None:
    """`partition.npz` says which examples the client was tested on."""
    names: dict[str, Any] = {}
    exec("".join(lines("In plain PyTorch", run=str(folder / "model-cnn"))), names)
    summary = json.loads((folder / "model-cnn" / "summary.json").read_text())
    with (
        np.load(folder / "images.npz") as data,
        np.load(folder / "model-cnn/partition.npz") as split,
    ):
        x = np.concatenate([data["x_train"], data["x_test"]])
        own = (split["client"] == 0) & (split["split"] == 2)
        right = np.equal(names["predict"](x[own]), split["label"][own]).mean()
    assert right == pytest.approx(summary["per_client"][0]["accuracy"])


def test_plain_lines_take_texts_as_the_saved_model_does(folder: Path, scores: Any) -> None:
    names: dict[str, Any] = {"torch": torch, "about": metadata(folder, "model-lstm")}
    exec(lines("Texts", run="")[0], names)
    texts = ["", "abc", "a long text, which is cut", "ü" * 9]
    model: Any = open_run(folder / "model-lstm").model(0)
    assert torch.equal(names["prepare"](texts), model.prepare(texts))


def test_plain_lines_predict_numbers_in_the_units_of_the_data(folder: Path, scores: Any) -> None:
    run = folder / "task-regression"
    names: dict[str, Any] = {}
    code = "".join([*lines("In plain PyTorch", run=str(run)), *lines("Regression", run=str(run))])
    exec(code, names)
    found: Any = open_run(run).config.task
    data = found.source.read()
    with np.load(run / "partition.npz") as split:
        own = (split["client"] == 0) & (split["split"] == 2)
    errors = np.abs(
        names["predict"](np.asarray(data.x)[own])[:, 0].numpy() - np.asarray(data.y)[own]
    )
    summary = json.loads((run / "summary.json").read_text())
    assert errors.mean() == pytest.approx(summary["per_client"][0]["mae"], rel=1e-5)


def test_labels_that_share_an_output_are_those_of_the_client(folder: Path, scores: Any) -> None:
    """task.labels=modulo: two clusters of five classes; an output means another label in each."""
    for client, labels in ((0, range(5)), (3, range(5, 10))):
        found = metadata(folder, "task-cross_device", client)
        assert [label for label, output in enumerate(found["label_map"]) if output >= 0] == [
            *labels
        ]
        model: Any = open_run(folder / "task-cross_device").model(client)
        assert sorted(set(model.labels.tolist()) - {-1}) == [*labels]


def test_language_and_quadratic_lines_run(folder: Path, scores: Any) -> None:
    """PEFT's own loader finds base and adapters; the quadratic's file has its point."""
    (code,) = lines("Language models", run="model-causal-lm")
    code = f"import sys; sys.modules['cobo_dist'] = None\n{code}\nprint(model.peft_config['default'].r)"
    assert in_fresh_process(code, folder=folder).split()[-1] == "4"
    names: dict[str, Any] = {}
    exec(lines("The quadratic task", run=str(folder / "task-quadratic"))[0], names)
    assert torch.equal(names["x"], open_run(folder / "task-quadratic").model(0).x)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["csv", "int64", "longdouble"])
@pytest.mark.parametrize("task_name", ["classification", "regression"])
def test_means_large_against_their_spread_are_kept(
    kind: str, task_name: str, tmp_path: Path
) -> None:
    """Times in seconds: training, `prepare` and the docs' lines give the same inputs and units."""
    times = 1_700_000_000 + np.arange(40)[:, None]
    labels = np.arange(40) % 2 if task_name == "classification" else times[:, 0]
    if kind == "csv":
        file = tmp_path / "t.csv"
        rows = [f"{time},{label}" for (time,), label in zip(times, labels, strict=True)]
        file.write_text("\n".join(["t,label", *rows]))
    else:
        file = tmp_path / "t.npz"
        np.savez(file, x_train=times.astype(kind), y_train=labels)
    config = load_config(None, [
        f"task.name={task_name}", f"task.source.name={file.suffix[1:]}",
        f"task.source.file={file}", "task.partition.clients=2",
    ])  # fmt: skip
    task: Any = build_task(config.task, config.model, config.data, 0, torch.float32)
    facts = task.model_facts()
    facts |= {"label_maps": [[0, 1]], "label_map_of": [0, 0], "classes": 2}
    model = (Classifier if task_name == "classification" else Regressor)(task.model(), facts, 0)
    names: dict[str, Any] = {
        "torch": torch, "about": {**facts, "label_map": [0, 1]},
        "network": torch.nn.Identity(), "state": {"": torch.zeros(1)},
    }  # fmt: skip
    exec(lines("In plain PyTorch", run="")[1], names)
    assert task.examples.inputs.std() == pytest.approx(1, abs=0.2)
    for given in (times, times.tolist()):
        assert torch.equal(model.prepare(given), task.examples.inputs)
        assert torch.equal(names["prepare"](given).float(), task.examples.inputs)
    if task_name == "regression":
        exec(lines("Regression", run="")[0], names)
        found = model.found(task.examples.inputs)
        assert np.abs(found.numpy() - labels).max() < 1e-4
        assert np.abs(names["predict"](times)[:, 0].numpy() - labels).max() < 1e-4
