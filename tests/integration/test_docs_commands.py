"""README and docs: every command runs; links, files, modules, keys and words are right.

Commands are the lines of fenced blocks marked `bash`. All of them run, in a copy of the project in a
temporary folder, with small sizes and made-up data; except those that `NOT_RUN` names, each with its reason.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import BIN, environment, said
from vision_data import write_images

from cobo_dist import reference
from cobo_dist.config import Config, all_keys

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
COPIED = (
    "cobo_dist", "launch", "slurm", "configs", "benchmarks", "examples", "README.md", "setup.cfg",
    "pyproject.toml",
)  # fmt: skip
TIMEOUT_SECONDS = (
    600.0  # of one command on a busy machine; none takes more than a minute on a quiet one
)

NOT_RUN = {
    r"\b(sbatch|srun)\b": "needs SLURM; tests/launchers/test_slurm.py runs the scripts",
    r"launch/test\.sh": "this test is part of it",
    r"python -m pytest": "this test is part of it",
    r"cobo_dist\.watch": "goes on until runs have ended; tests/unit/watching runs it",
    r"python -m stress": "takes minutes; tests/integration/test_stress.py runs its parts",
    r"NNODES=|--hostfile": "needs several hosts",
    r"benchmarks/gpu\.py": "takes minutes; tests/integration/test_gpu_benchmark.py runs it small",
    r"run\.device=cuda|CUDA_VISIBLE_DEVICES|--gpus": "needs a GPU",
}
# Without figures: a run ends well whose figures fail, so they would show nothing here; reports draw them too.
# With one engine, for the choice times both, which takes longer than two rounds.
TINY_RUN = (
    "run.rounds=2 run.eval_every=0 run.log_weights_every=1 run.checkpoint_every=0 log.figures=false "
    "run.engine=one_by_one"
)
TINY_IMAGES = "model.width=4 data.batch_size=4 data.eval_examples=8"
TINY_TEXT = "model.name=tiny-gpt2 task.context=16 task.tokens=5000 data.batch_size=2"
SMALLER = {
    # What a line has -> what is added to it.
    r"cobo_dist\.(train|sweep)|launch/(torchrun|mpirun)\.sh": TINY_RUN,
    r"(cobo_dist\.train|launch/(torchrun|mpirun)\.sh)(?!.*run\.resume)": "run.overwrite=true",
    r"cobo_dist\.train membership": "run.rounds=130",  # the events come before
    r"launch/quickstart\.sh": "run.rounds=20",
    r"cross_(silo|device)": TINY_IMAGES,
    r"configs/cpu/language|task\.name=language": TINY_TEXT,
    r"slurm/submit\.py": "--dry-run run.dir=runs/submitted",
    r"cobo_dist\.doctor": "run.dir=runs/checked",
    r"benchmarks/short_runs\.sh": TINY_RUN,
    r"benchmarks/theory\.py": "--rounds 3 --seeds 1",
    r"benchmarks/sketch\.py": "--only paper --sizes 4 --rounds 2 --seeds 0",
    r"benchmarks/privacy\.py": "--only paper --epsilons 8 --rounds 2 --seeds 0",
    r"benchmarks/structures\.py": "--only IID --rounds 2 --seeds 0",
    r"benchmarks/compression\.py": "--only paper --rounds 2 --seeds 0",
    r"benchmarks/asynchrony\.py": "--ranks 2 --rounds 100 --stop 0.1 --every 0.5 --seeds 0 --lags 5",
    r"benchmarks/stragglers\.py": "--only sync AD-PSGD --slow 1 2 --rounds 2 --seeds 0",
    r"benchmarks/drift\.py": "--only Oracle --rounds 8 --seeds 0",
    r"benchmarks/newcomers\.py": "--rounds 12 --seeds 0 --clients 30",
    r"benchmarks/study\.py": "--only digits --methods local --rounds 2 --seeds 0",
    r"benchmarks/coupling\.py": "--only '80 digits MLPs' --ranks 1 --repeats 1",
    r"benchmarks/bench\.py": "--only digits --methods local fedbn --rounds 2 --seeds 0 --rates 0.1",
    r"benchmarks/pfllib\.py": "--data cifar --rounds 1 --methods local",
    r"early_stopping": "run.eval_every=1",  # without evaluations it refuses to run
}
REPLACED = {
    # Made-up data in place of downloads; two rows of a table in place of all; two ranks in place of four.
    "--nproc_per_node=4": "--nproc_per_node=2",
    "mpirun -n 4": "mpirun -n 2",
    "RANKS=4": "RANKS=2",
    "prepare task.name=cross_silo data.root=data": "prepare task.name=cross_silo data.root=cifar",
    "data.text_dir=DIR": "data.text_dir=texts",
    "data.root=DIR": "data.root=cifar",
    "configs/cpu/cross_silo_*.yaml configs/cpu/table1_*.yaml":
        "configs/cpu/cross_silo_local.yaml configs/cpu/table1_mixed.yaml",
    "configs/cpu/cross_silo_*.yaml": "configs/cpu/cross_silo_cobo.yaml configs/cpu/cross_silo_local.yaml",
    "configs/cpu/cross_device_*.yaml": "configs/cpu/cross_device_oracle.yaml",
    "for name in local fedavg finetuned_fedavg ditto ifca federated_clustering oracle cobo;":
        "for name in cobo;",
    "for name in local fedavg ditto validation_based cobo;": "for name in cobo;",
    "for alignment in inner cosine;": "for alignment in cosine;",
    "for name in dirichlet_cifar100 mnist5k_pathological natural_clients vit_dirichlet lstm_text regression;":
        "for name in regression;",
    "DATA=DIR bash benchmarks/short_runs.sh": "METHODS=local SEEDS=0 bash benchmarks/short_runs.sh",
    "DIR/text runs/fragments.csv": "texts runs/fragments.csv",
    "round: 151, clients": "round: 2, clients",
    "round: 151, until: 250": "round: 1, until: 2",
    "for seed in 0 1 2;": "for seed in 0;",
    "seed=0,1,2": "seed=0",
    "seed=0,1": "seed=0",
    "algorithm.start=ones,zeros": "algorithm.start=ones",
    "run.eval_every=500 ": "",
    "run.rounds=600 run.eval_every=200 ": "",
    "algorithm.rho=0.2,0.5,1.0": "algorithm.rho=0.5",
    "algorithm.rho=0.1,0.5,1.0": "algorithm.rho=0.5",
}  # fmt: skip
FILE = r"[a-z_]+(/[A-Za-z0-9_.]+)*/\w+\.(py|sh|sbatch|md|yaml)"
NOT_WORDS = re.compile(
    r"\b(rooms?|doors?|foretold|foretell|stand-ins?|parcels?|ledger|rehears\w*|roll ?call|whoever|told of)\b",
    re.IGNORECASE,
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page: (language, text)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the commands of a page, each with the lines that a shell needs to take it."""
    found = []
    for language, text in blocks(page):
        if language != "bash":
            continue
        command = ""
        for line in text.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s+)#.*$", "", line)
            command = f"{command}\n{line}".strip()
            if (
                command
                and subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode
                == 0
            ):
                found.append(command)
                command = ""
        assert not command, f"{page.name}: an unfinished command: {command}"
    return found


def reason_not_to_run(command: str) -> str:
    """Return why a command does not run here; empty if it does."""
    for pattern, reason in NOT_RUN.items():
        if re.search(pattern, command):
            return reason
    if "mpirun" in command and not shutil.which("mpirun", path=f"{BIN}:{os.environ['PATH']}"):
        return "there is no mpirun"
    return ""


def smaller(command: str) -> str:
    """Return the command with small sizes and made-up data."""
    for text, replacement in REPLACED.items():
        command = command.replace(text, replacement)
    lines = []
    for line in command.splitlines():
        added = [more for pattern, more in SMALLER.items() if re.search(pattern, line)]
        if "cobo_dist.prepare" in line or "cobo_dist.report" in line:
            added = []
        lines.append(" ".join([line, *added]))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with small data, and a .venv that is the python of these tests."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if not path.name.startswith("installed-"):
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv/installed-plain").touch()  # so that launch/venv.sh installs nothing
    (folder / "F.yaml").write_text("run: {rounds: 2}\nmodel: {name: mlp, hidden: [8]}\n")
    (folder / "cobo.sif").touch()
    (folder / "cifar").mkdir()
    write_images(folder / "cifar/cifar100.npz", train=2000, test=200, classes=100)
    write_images(folder / "images.npz")
    (folder / "texts").mkdir()
    letters = np.random.default_rng(0)
    for name in ("ca", "es", "de", "nl"):
        lines = ["".join(letters.choice(list("abcdefgh "), size=30)) for _ in range(200)]
        (folder / "texts" / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def have_run() -> set[str]:
    """The commands that have run in the project: no need to run them again for another page."""
    return set()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_commands_run(name: str, project: Path, have_run: set[str]) -> None:
    env = environment(PATH=f"{BIN}:{os.environ['PATH']}", PYTHONPATH=str(project))
    for command in commands(ROOT / name):
        if reason_not_to_run(command) or command in have_run:
            continue
        done = subprocess.run(
            ["bash", "-euc", smaller(command)],
            cwd=project,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, [smaller(command), said(done.stderr), done.stderr[-2000:]]
        have_run.add(command)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["docs/PYTHON.md"])
def test_the_python_blocks_of_a_page_run_one_after_the_other(name: str, project: Path) -> None:
    code = "\n".join(text for language, text in blocks(ROOT / name) if language == "python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment(PYTHONPATH=str(project)),
        capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", NAMES)
def test_every_block_names_its_language(name: str) -> None:
    languages = {language for language, _ in blocks(ROOT / name)}
    assert languages <= {"bash", "text", "python", "yaml", "json", "latex"}


def test_every_reason_and_replacement_is_needed() -> None:
    every = "\n".join(command for page in PAGES for command in commands(page))
    unused = [pattern for pattern in (*NOT_RUN, *SMALLER) if not re.search(pattern, every)]
    unused += [text for text in REPLACED if text not in every]
    assert unused == []


def readme_algorithm() -> dict[str, Any]:
    """The functions that README shows, by name."""
    ((_, shown),) = [block for block in blocks(ROOT / "README.md") if block[0] == "python"]
    names: dict[str, Any] = {"torch": torch}
    exec(shown, names)
    return names


def test_the_readme_shows_the_reference_algorithm() -> None:
    """It has the paper's update alone: the reference's defaults, with the same bits."""
    shown = readme_algorithm()
    random = torch.Generator().manual_seed(0)
    start, centers = torch.randn(2, 6, 3, generator=random, dtype=torch.float64)
    pairs = list(reference.sample_pairs(6, rounds=40))
    steps: dict[str, Any] = {"rho": 0.5, "gamma": 0.1, "eta": 0.1}
    found = shown["cobo"](start, lambda i, point: point - centers[i], pairs, **steps)
    expected = reference.cobo(start, lambda i, point: point - centers[i], pairs, **steps)
    assert 0.1 < float(expected[1].mean()) < 0.9
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_the_readmes_algorithm_finds_two_clusters() -> None:
    centers = torch.tensor([[0.0], [0.2], [4.0], [4.2]], dtype=torch.float64)
    start = torch.full((4, 1), 2.0, dtype=torch.float64)
    _, w_nn = readme_algorithm()["cobo"](
        start, lambda i, point: point - centers[i], reference.sample_pairs(4, rounds=300),
        rho=2.0, gamma=0.1, eta=0.1,
    )  # fmt: skip
    assert (w_nn > 0.5).tolist() == [[i // 2 == j // 2 for j in range(4)] for i in range(4)]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_files_and_modules_in_backticks_exist(name: str) -> None:
    """`docs/X.md` from the project's folder; `comm/x.py` from the package; `cobo_dist.x.y` as a module."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"`([^`\n]+)`", text)
    for words in quoted:
        for word in words.split():
            placeholder = re.search(r"\b(NAME|METHOD)\b", word)
            if re.fullmatch(FILE, word) and not placeholder:
                assert any((root / word).exists() for root in (ROOT, ROOT / "cobo_dist")), word
            if re.fullmatch(r"cobo_dist(\.[a-z_]+)+", word):
                assert importlib.util.find_spec(word), word


@pytest.mark.parametrize("name", NAMES)
def test_keys_in_backticks_exist(name: str) -> None:
    known = {key for key, _ in all_keys()}
    quoted = re.findall(r"`([a-z_]+\.[a-z_.]+)(?:=[^`\n]*)?`", (ROOT / name).read_text())
    for key in quoted:
        if key.partition(".")[0] in Config.model_fields and not key.endswith(
            (".py", ".yaml", ".json")
        ):
            assert key in known or any(one.startswith(f"{key}.") for one in known), key


@pytest.mark.parametrize("name", NAMES)
def test_words_are_plain(name: str) -> None:
    assert NOT_WORDS.findall((ROOT / name).read_text()) == []


def test_the_glossary_is_short() -> None:
    lines = [
        line
        for line in (ROOT / "docs/GLOSSARY.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert len(lines) - 2 <= 25
