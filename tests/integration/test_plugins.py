"""Plug-ins: the same numbers on any number of ranks, planned, resumed, reported; every refusal one line."""

from __future__ import annotations

import csv
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launching import environment
from pool import RankPool
from problems import QUIET, models, train, write_quadratic

from cobo_dist.cli import plan, report, sweep
from cobo_dist.cli.train import main
from cobo_dist.comm.session import Session
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError, RunFailure
from cobo_dist.plugins import load_plugins
from cobo_dist.registry import register
from cobo_dist.reports.reading import read_run
from cobo_dist.training.run import run_in_session

PLUGINS = Path(__file__).parents[1] / "support/plugins"
RING = PLUGINS / "ring.py"
N, ROUNDS = 7, 12


@pytest.fixture(autouse=True)
def forget_what_tests_registered() -> None:
    """Tests use one name for several plug-ins."""
    load_plugins([])


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quadratic(tmp_path_factory.mktemp("problem") / "problem.npz", N)


def arguments(problem: Path, folder: Path, plugin: Path = RING, *more: str) -> list[str]:
    return [
        f"plugins={plugin}", "algorithm.name=ring", "task.name=quadratic", f"task.file={problem}",
        "run.dtype=float64", f"run.rounds={ROUNDS}", f"run.dir={folder}", "run.checkpoint_every=4",
        "log.progress=none", "log.figures=false", *more,
    ]  # fmt: skip


def dense_ring(problem: Path, gamma: float = 0.5, eta: float = 0.1) -> np.ndarray:
    """The ring on one array."""
    with np.load(problem) as stored:
        centers, curvature, start = stored["centers"], stored["curvature"], stored["start"]
    x = np.tile(start, (len(centers), 1))
    for _ in range(ROUNDS):
        x = x - eta * curvature[:, None] * (x - centers)
        x = (1 - gamma) * x + gamma * np.roll(x, -1, axis=0)
    return x


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("check", ["false", "true"])
def test_a_directed_ring_equals_the_dense_one(
    pool: RankPool, problem: Path, tmp_path: Path, ranks: int, check: str
) -> None:
    """A key `gamma` of another algorithm than CoBo does not wake CoBo's health checks either."""
    given = arguments(problem, tmp_path / "run", RING, "algorithm.gamma=0.3", f"comm.check={check}")
    assert pool.run(ranks, train, given) == [0] * ranks
    found = np.stack(list(models(tmp_path / "run").values()))
    np.testing.assert_allclose(found, dense_ring(problem, 0.3), rtol=0, atol=1e-12)
    assert "warning" not in (tmp_path / "run/metrics.jsonl").read_text()


def test_a_run_folder_repeats_the_run_without_the_plugin_file(
    problem: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    shutil.copy(RING, mine)
    assert main(arguments(problem, tmp_path / "first", mine)) == 0
    mine.unlink()
    again = ["--config", str(tmp_path / "first/config.yaml"), f"run.dir={tmp_path / 'again'}"]
    assert main(again) == 0
    for name, model in models(tmp_path / "first").items():
        np.testing.assert_array_equal(model, models(tmp_path / "again")[name])


def test_plan_counts_what_a_run_of_the_ring_sends(
    pool: RankPool, problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(problem, tmp_path / "run")
    assert plan.main([*given, "ranks=2"]) == 0
    planned = capsys.readouterr().out
    pool.run(2, train, given)
    with open(tmp_path / "run/metrics.jsonl") as lines:
        sent = next(line for line in lines if '"round": 1,' in line and '"bytes_sent"' in line)
    total = int(sent.partition('"bytes_sent": ')[2].split(",")[0])
    assert f"{total:,}" in planned or f"{total} B" in planned or f"{total / 1e3:.1f} kB" in planned


def test_a_report_draws_the_ring_beside_the_others(problem: Path, tmp_path: Path) -> None:
    assert main(arguments(problem, tmp_path / "ring")) == 0
    local = arguments(problem, tmp_path / "local", RING, "algorithm.name=local")
    assert main(local) == 0
    load_plugins([])  # a report needs no plug-in
    assert (
        report.main([str(tmp_path / "ring"), str(tmp_path / "local"), "--out", str(tmp_path)]) == 0
    )
    with open(tmp_path / "table.csv") as file:
        methods = [row["method"] for row in csv.DictReader(file)]
    assert methods == ["local", "ring"]
    assert read_run(tmp_path / "ring").method.title == "Directed ring"


def test_a_sweep_runs_a_plugin(
    problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        f"plugins={RING}", "algorithm.name=ring,local", "algorithm.gamma=0.2,0.4",
        "task.name=quadratic", f"task.file={problem}", "--out", str(tmp_path / "sweep"), "--dry-run",
    ]  # fmt: skip
    assert sweep.main(given) == 0
    shown = capsys.readouterr().out
    assert shown.count("ring") >= 2
    assert "quadratic-ring-gamma0.4-s0" in shown


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("", "is none of local"),
        ("import nothing_of_that_name", "line 1: ModuleNotFoundError"),
        ("x = 1 / 0", "line 1: ZeroDivisionError"),
        ("def f(:", "line 1"),
        ("raise SystemExit(3)", "SystemExit"),
        ("register.algorithm('ring')(3)", "3 is no class"),
        ("register.algorithm('ring')(int)", "int does not derive from it"),
        ("@register.algorithm('ring')\nclass R(Algorithm): pass", r"R has no method round\(self, t\)"),
        (
            "@register.algorithm('ring')\nclass R(Algorithm):\n  def round(self): pass",
            r"round\(self\): too many positional arguments",
        ),
        (
            "@register.algorithm('cobo')\nclass R(Algorithm):\n  def round(self, t): pass",
            "algorithm cobo is registered already, by cobo_dist; choose another name",
        ),
        (
            "@register.algorithm('ring')\nclass R(Algorithm):\n  Config = 3\n  def round(self, t): pass",
            "R.Config does not derive from AlgorithmSection",
        ),
        ("register.algorithm('a b')(Algorithm)", "a name is a letter"),
        ("register.optimizer('x')", "nothing of kind 'optimizer' can be registered"),
        ("register.statistic('s')(lambda: 0)", "too many positional arguments"),
    ],
)  # fmt: skip
def test_a_plugin_that_is_wrong_is_refused_in_one_line(
    problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, says: str
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(f"{code and 'from cobo_dist import Algorithm, register; '}{code}\n")
    if code.startswith(("@", "import", "def")):
        plugin.write_text(f"{code}\n".replace("@", "from cobo_dist import *\n@", 1))
    assert main(arguments(problem, tmp_path / "run", plugin)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert re.search(says, error), error
    assert not (tmp_path / "run").exists()


def test_a_missing_plugin_names_where_it_was_looked_for(
    problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(problem, tmp_path / "run", tmp_path / "no.py")) == 2
    assert "there is no such file; give its path from" in capsys.readouterr().err
    assert main(["plugins=no_such_module"]) == 2
    assert "there is no module no_such_module; install it" in capsys.readouterr().err
    assert main([f"plugins=[{RING}, {RING}]"]) == 2
    assert "give each plug-in once" in capsys.readouterr().err


def test_two_plugins_of_one_name(
    problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.py"
    shutil.copy(RING, other)
    assert main([f"plugins=[{RING}, {other}]", "algorithm.name=ring"]) == 2
    assert f"algorithm ring is registered already, by {RING}" in capsys.readouterr().err


def test_a_key_of_a_plugin_is_checked_and_hinted_at(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, says in (
        ("algorithm.gama=1", "did you mean algorithm.gamma?"),
        ("algorithm.gamma=7", "algorithm.gamma=7 is refused"),
        ("algorithm.rho=1", "algorithm.rho is no key of algorithm.name=ring"),
    ):
        assert main([f"plugins={RING}", "algorithm.name=ring", wrong]) == 2
        assert says in capsys.readouterr().err
    assert main([f"plugins={RING}", "algorithm.name=rong"]) == 2
    assert "did you mean ring?" in capsys.readouterr().err


def test_a_changed_plugin_is_no_longer_that_run(
    problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    shutil.copy(RING, mine)
    assert main(arguments(problem, tmp_path / "run", mine)) == 0
    longer = [f"run.rounds={ROUNDS + 4}", "run.resume=auto"]
    mine.write_text(mine.read_text() + "\n# changed\n")
    assert main([*arguments(problem, tmp_path / "run", mine), *longer]) == 2
    assert f"another plug-in {mine}; give the one that is kept in" in capsys.readouterr().err
    kept = tmp_path / "run/plugins/mine.py"
    assert main([*arguments(problem, tmp_path / "run", kept), *longer]) == 0
    assert main([*arguments(problem, tmp_path / "whole", kept), longer[0]]) == 0
    for name, model in models(tmp_path / "run").items():
        np.testing.assert_array_equal(model, models(tmp_path / "whole")[name])


def refusal_with_own_plugin(session: Session, given: list[str], files: list[str]) -> str:
    mine = files[session.transport.rank]
    try:
        run_in_session(load_config(None, [f"plugins={mine}", *given[1:]]), session)
    except (ConfigError, RunFailure) as refusal:
        return str(refusal)
    return "not refused"


def test_ranks_with_different_plugins_are_refused(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    files = []
    for rank in range(2):
        folder = tmp_path / f"node{rank}"
        folder.mkdir()
        (folder / "mine.py").write_text(RING.read_text() + f"# rank {rank}\n")
        files.append(str(folder / "mine.py"))
    link = tmp_path / "mine.py"
    given = arguments(problem, tmp_path / "run", link)
    answers = pool.run(2, refusal_with_own_plugin, given, files)
    assert len(set(answers)) == 1
    assert "rank 1 on" in answers[0]
    assert "read another plug-in" in answers[0]


def test_a_plugin_that_raises_in_a_round_names_its_line(
    problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(RING.read_text().replace("losses_c = ", "1 / (t - 2)\n        losses_c = "))
    line = mine.read_text().splitlines().index("        1 / (t - 2)") + 1
    assert main(arguments(problem, tmp_path / "run", mine)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{mine}, line {line}: ZeroDivisionError" in error
    assert "in round 3" in (tmp_path / "run/errors/rank_00000.txt").read_text()


def test_a_round_that_returns_nothing_is_told(
    problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(RING.read_text().replace("return RoundResult(losses_c)", "return losses_c"))
    assert main(arguments(problem, tmp_path / "run", mine)) == 1
    assert "round returned a Tensor; return RoundResult(losses)" in capsys.readouterr().err


# -- statistics ----------------------------------------------------------------------------------------

SIGN = """
import numpy as np
from cobo_dist import register

@register.statistic("sign")
def sign(dots_e, squares_i_e, squares_j_e):
    assert len(dots_e) == len(squares_i_e) == len(squares_j_e)
    return np.sign(dots_e)
"""


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_statistic_of_ones_own(pool: RankPool, problem: Path, tmp_path: Path, ranks: int) -> None:
    """With the sign, every meeting moves a weight by gamma."""
    plugin = tmp_path / "sign.py"
    plugin.write_text(SIGN)
    given = arguments(
        problem, tmp_path / "run", plugin, "algorithm.name=cobo", "algorithm.alignment=sign",
        "algorithm.gamma=0.25", "algorithm.sampling.name=all", "run.log_weights_every=1",
    )  # fmt: skip
    pool.run(ranks, train, given)
    weights = np.load(tmp_path / "run/W.npz")["weights"]
    off = ~np.eye(N, dtype=bool)
    assert set(np.unique(weights[:, off])) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len(np.unique(weights[:, off])) > 2


def test_a_statistic_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["algorithm.alignment=cosin"]) == 2
    assert "is none of cosine, inner; did you mean cosine?" in capsys.readouterr().err


# -- losses, metrics, tasks and models -----------------------------------------------------------------

OWN = """
from functools import partial
import torch
from torch import nn
from pydantic import Field
from cobo_dist import ModelSection, register

register.loss("smooth")(partial(nn.functional.cross_entropy, label_smoothing=0.1))

@register.metric("top2")
def top2(outputs, targets):
    return (outputs.topk(2, dim=1).indices == targets[:, None]).any(dim=1)

@register.model("wide")
class Wide(ModelSection):
    '''One linear layer, repeated.'''
    depth: int = Field(1, ge=1, description="layers")
    def build(self, shape, classes):
        layers = [nn.Linear(shape.numel(), shape.numel()) for _ in range(self.depth - 1)]
        return nn.Sequential(nn.Flatten(start_dim=1), *layers, nn.Linear(shape.numel(), classes))
"""


def test_a_loss_a_metric_and_a_model_of_ones_own(tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(OWN)
    folders = []
    for name, more in (("first", []), ("second", ["task.loss=cross_entropy"])):
        folders.append(tmp_path / name)
        given = [
            f"plugins={plugin}", "task.loss=smooth", "task.metrics=[top2, accuracy]",
            "model.name=wide", "model.depth=2", "run.rounds=30", "run.eval_every=30",
            f"run.dir={folders[-1]}", "log.progress=none", "log.figures=false", *more,
        ]  # fmt: skip
        assert main(given) == 0
    one, two = (read_run(folder) for folder in folders)
    assert one.summary is not None
    assert two.summary is not None
    assert one.summary.final["top2"] > one.summary.final["accuracy"] > 0.2
    assert one.summary.final["loss"] > two.summary.final["loss"] * 0.9
    assert one.summary.final != two.summary.final
    assert report.main([*map(str, folders), "--out", str(tmp_path / "report")]) == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("task.loss=smoth", "is none of cross_entropy"),
        ("task.metrics=[acuracy]", "is none of accuracy, mae, rmse; did you mean accuracy?"),
        ("model.name=wide", "is none of causal-lm, cnn"),
    ],
)
def test_what_is_not_registered_is_refused(
    capsys: pytest.CaptureFixture[str], given: str, says: str
) -> None:
    assert main([given]) == 2
    assert says in capsys.readouterr().err


# -- the examples --------------------------------------------------------------------------------------

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_examples_algorithm_keeps_models_near_their_mean(
    pool: RankPool, problem: Path, tmp_path: Path, ranks: int
) -> None:
    mu, steps, eta = 0.5, 3, 0.1
    given = arguments(
        problem, tmp_path / "run", EXAMPLES / "own_algorithm.py", "algorithm.name=near_mean",
        f"algorithm.mu={mu}", f"local.steps={steps}",
    )  # fmt: skip
    assert pool.run(ranks, train, given) == [0] * ranks
    with np.load(problem) as stored:
        centers, curvature, start = stored["centers"], stored["curvature"], stored["start"]
    x = np.tile(start, (N, 1))
    for _ in range(ROUNDS):
        mean = x.mean(axis=0)
        for _ in range(steps):
            x = x - eta * (curvature[:, None] * (x - centers) + mu * (x - mean))
    found = np.stack(list(models(tmp_path / "run").values()))
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-12)


def test_the_examples_statistic(problem: Path, tmp_path: Path) -> None:
    given = arguments(
        problem, tmp_path / "run", EXAMPLES / "own_statistic.py", "algorithm.name=cobo",
        "algorithm.alignment=clipped",
    )  # fmt: skip
    assert main(given) == 0


# -- hostile cases -------------------------------------------------------------------------------------


def quiet(folder: Path, *more: str) -> list[str]:
    return [
        f"run.dir={folder}", "run.rounds=4", "run.eval_every=4", "log.progress=none",
        "log.figures=false", "run.threads=1", *more,
    ]  # fmt: skip


def near_mean(path: Path, name: str, *changes: tuple[str, str]) -> Path:
    code = (EXAMPLES / "own_algorithm.py").read_text().replace('"near_mean"', f'"{name}"')
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return path


def test_a_run_can_be_overwritten_from_its_own_copy_of_the_plugin(tmp_path: Path) -> None:
    """Also with the ends of lines and the encoding of another system."""
    plugin = near_mean(tmp_path / "gone.py", "gone", ('"""An', '# -*- coding: latin-1 -*-\n"""An'))
    plugin.write_bytes(plugin.read_bytes().replace(b"\n", b"\r\n").replace(b"Local", b"Loc\xe9l"))
    run = tmp_path / "run"
    assert main(quiet(run, f"plugins={plugin}", "algorithm.name=gone")) == 0
    assert (run / "plugins/gone.py").read_bytes() == plugin.read_bytes()
    plugin.unlink()
    load_plugins([])
    again = ["--config", str(run / "config.yaml"), "log.progress=none", "log.figures=false"]
    assert main([*again, "run.overwrite=true"]) == 0
    assert main([*again, "run.rounds=6", "run.resume=auto"]) == 0


def test_a_runs_config_means_the_plugin_that_the_run_kept(tmp_path: Path) -> None:
    plugin = near_mean(tmp_path / "ed.py", "ed")
    run, again = tmp_path / "run", tmp_path / "again"
    assert main(quiet(run, f"plugins={plugin}", "algorithm.name=ed")) == 0
    near_mean(plugin, "ed", ("losses_c = ", "x_cd.zero_()\n        losses_c = "))
    assert (
        main(["--config", str(run / "config.yaml"), f"run.dir={again}", "log.progress=none"]) == 0
    )
    for name, model in models(run).items():
        np.testing.assert_array_equal(model, models(again)[name])


def test_a_package_and_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It can be loaded twice in a process, has a copy, and a change in any of its files is seen."""
    near_mean(tmp_path / "pk/algo.py", "pkprox")
    (tmp_path / "pk/__init__.py").write_text("from . import algo\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = quiet(tmp_path / "run", "plugins=pk", "algorithm.name=pkprox")
    assert main(given) == 0
    assert main(quiet(tmp_path / "other")) == 0  # forgets it
    assert main([*given, "run.overwrite=true"]) == 0
    assert (tmp_path / "run/plugins/pk/algo.py").exists()
    near_mean(
        tmp_path / "pk/algo.py",
        "pkprox",
        ("losses_c = ", "raise ValueError('deep')\n        losses_c = "),
    )
    assert main([*given, "run.rounds=6", "run.resume=auto"]) == 2
    assert "was written with another plug-in pk" in capsys.readouterr().err
    assert main([*given, "run.overwrite=true"]) == 1
    assert re.search(r"pk/algo.py, line \d+: ValueError: deep", capsys.readouterr().err)


def test_a_plugin_imports_its_neighbours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = near_mean(
        tmp_path / "sib/a.py", "sib", ("import numpy as np", "import numpy as np\nfrom helper_x import K"),
        ("points - mean_1d", "K * (points - mean_1d)"),
    )  # fmt: skip
    (plugin.parent / "helper_x.py").write_text("K = 1.0\n")
    given = quiet(tmp_path / "run", f"plugins={plugin}", "algorithm.name=sib")
    assert main(given) == 0
    assert (tmp_path / "run/plugins/helper_x.py").exists()
    (plugin.parent / "helper_x.py").write_text("K = -5.0\n")
    assert main([*given, "run.rounds=6", "run.resume=auto"]) == 2
    assert "another plug-in" in capsys.readouterr().err


def test_a_path_in_a_config_may_be_relative_to_it(tmp_path: Path) -> None:
    near_mean(tmp_path / "exp/mine.py", "mine")
    (tmp_path / "exp/c.yaml").write_text("plugins: [mine.py]\nalgorithm: {name: mine}\n")
    assert main(["--config", str(tmp_path / "exp/c.yaml"), *quiet(tmp_path / "run")]) == 0


def test_another_config_may_be_read_while_a_run_goes_on(tmp_path: Path) -> None:
    """A callback looks at another run, which has no plug-ins; this one has a statistic of its own."""
    import cobo_dist

    assert main(quiet(tmp_path / "base")) == 0

    class Look(cobo_dist.Callback):
        def begin(self, run: object) -> None:
            assert cobo_dist.open_run(tmp_path / "base").config.plugins == ()

    plugin = f"plugins={EXAMPLES / 'own_statistic.py'}"
    given = quiet(tmp_path / "run", plugin, "algorithm.alignment=clipped")
    run = cobo_dist.fit(overrides=given, callbacks=[Look()])
    assert run.summary is not None
    once_more = cobo_dist.fit(run.config, [f"run.dir={tmp_path / 'again'}"])
    assert once_more.summary is not None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return Weights(", "return np.ones(3) if 1 else Weights(", "weights is a ndarray; make it"),
        ("RoundResult(losses_c)", "RoundResult(losses_c.mean())", "returned losses of shape"),
        ("RoundResult(losses_c)", "RoundResult([1.0])", "returned losses of list"),
        (
            "    def round(self",
            "    def state(self):\n        return None\n\n    def round(self",
            r"state\(\) returned a NoneType; return an AlgorithmState",
        ),
        (
            "    def round(self",
            "    def __init__(self, *parts):\n        self.weights = None\n\n    def round(self",
            r"__init__ does not call super\(\).__init__",
        ),
    ],
)  # fmt: skip
def test_what_an_algorithm_makes_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, says: str
) -> None:
    plugin = near_mean(tmp_path / "mine.py", "mine", (old, new))
    assert main(quiet(tmp_path / "run", f"plugins={plugin}", "algorithm.name=mine")) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error


def test_a_section_that_raises_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raises = "\n\n        def contradiction(self):\n            raise KeyError('x')\n"
    plugin = near_mean(
        tmp_path / "mine.py", "mine", ("(Local: 0)\")", f"(Local: 0)\"){raises}")
    )  # fmt: skip
    for command in (main, plan.main):
        given = [f"plugins={plugin}", "algorithm.name=mine"]
        assert command([*given, "ranks=2"] if command is plan.main else given) == 2
        assert re.fullmatch(
            r"error: \S*mine.py, line \d+: KeyError: 'x'; .*\n", capsys.readouterr().err
        )


ENTRY = "[cobo_dist.plugins]\nmine = {}\n"


@pytest.mark.parametrize("name", ["goodpoint", "badpoint"])
def test_installed_plugins(tmp_path: Path, name: str) -> None:
    """One that cannot be loaded is told where a name is unknown, and stops nothing else."""
    site = tmp_path / "site"
    near_mean(site / "goodpoint.py", "pointed")
    (site / "badpoint.py").write_text("1 / 0\n")
    info = site / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY.format(name))

    def run(*given: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cobo_dist.train", *quiet(tmp_path / "run"), *given]
        path = f"{site}:{EXAMPLES.parent}"
        return subprocess.run(
            command, env=environment(PYTHONPATH=path), capture_output=True, text=True
        )

    assert run("run.overwrite=true").returncode == 0
    done = run("algorithm.name=pointed", "run.overwrite=true")
    if name == "goodpoint":
        assert done.returncode == 0, done.stderr
        near_mean(
            site / "goodpoint.py", "pointed", ("losses_c = ", "x_cd.zero_()\n        losses_c = ")
        )
        done = run("algorithm.name=pointed", "run.rounds=6", "run.resume=auto")
        assert done.returncode == 2
        assert "another plug-in goodpoint" in done.stderr
    else:
        assert done.returncode == 2
        assert "the installed plug-in mine cannot be loaded: badpoint.py, line 1" in done.stderr


# -- what is checked before training -------------------------------------------------------------------

LOSSES = {
    "ignores": ("F.cross_entropy(o, t)", "with 'sum' for 8 examples; return the mean"),
    "none": (
        "F.cross_entropy(o, t, reduction='none')",
        r"returned shape \[8\] with reduction='mean'",
    ),
    "number": ("float(F.cross_entropy(o, t))", "with reduction='mean'; return a tensor"),
    "right": ("F.cross_entropy(o, t, reduction=reduction)", ""),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_must_heed_its_reduction(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin, (code, says) = tmp_path / "own.py", LOSSES[case]
    plugin.write_text(
        "from torch.nn import functional as F\nfrom cobo_dist import register\n"
        f"@register.loss('own')\ndef own(o, t, reduction='mean'):\n    return {code}\n"
    )
    folder = tmp_path / "run"
    given = [f"plugins={plugin}", "task.loss=own", "run.rounds=1", f"run.dir={folder}", *QUIET]
    assert main(given) == (2 if says else 0)
    if says:
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: task.loss=own returned ")
        assert re.search(says, line), line
        assert not folder.exists()


def test_a_sweep_over_keys_of_a_plugin_leaves_them_out_of_other_algorithms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for files in ([], ["--config", str(tmp_path / "some.yaml")]):
        (tmp_path / "some.yaml").write_text("run: {rounds: 3}\n")
        load_plugins([])
        given = [
            f"plugins={EXAMPLES / 'own_algorithm.py'}", "algorithm.name=near_mean,fedavg",
            "algorithm.mu=0,0.1", "--out", str(tmp_path / "sweep"), "--dry-run", *files,
        ]  # fmt: skip
        assert sweep.main(given) == 0
        assert "3 to run" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_statistic_that_is_not_finite_is_named(
    value: str, problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "sign.py"
    plugin.write_text(SIGN.replace("np.sign(dots_e)", f"dots_e * np.{value}"))
    given = arguments(
        problem, tmp_path / "run", plugin, "algorithm.name=cobo", "algorithm.alignment=sign",
        "algorithm.sampling.name=all",
    )  # fmt: skip
    assert main(given) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"statistic sign returned {value} for (" in line.replace("-inf", "inf")


def test_a_model_that_diverges_is_told_which_keys_to_lower(
    problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for algorithm, says in (("local", "lower optimizer.lr ("), ("cobo", "or algorithm.rho (")):
        more = [f"algorithm.name={algorithm}", "optimizer.lr=1e12", "run.rounds=30"]
        assert main(arguments(problem, tmp_path / algorithm, RING, *more)) == 1
        assert says in capsys.readouterr().err


TWICE = """
from functools import partial
from torch.nn import functional as F
from cobo_dist import register
register.loss("twice")(F.cross_entropy)
register.loss("{}")(partial(F.cross_entropy, label_smoothing=0.1))
"""


def test_a_name_is_registered_once_in_a_file_that_may_be_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "twice_registered.py"
    plugin.write_text(TWICE.format("twice"))
    with pytest.raises(
        ConfigError, match=r"in line 6: line 5 registers loss twice already; choose"
    ):
        load_plugins([str(plugin)])
    assert "twice" not in register.loss
    plugin.write_text(TWICE.format("other"))
    for _ in range(2):
        load_plugins([])
        load_plugins([str(plugin)])
    load_plugins([])
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("twice_registered")
    importlib.reload(module)
    for _ in range(2):  # a cell of a notebook, whose second run has a line more
        exec(
            compile("\n" + TWICE.format("other"), "cell", "exec"), {"__name__": "twice_registered"}
        )
    register.forget("torch.nn.functional")
    register.forget("functools")


REQUIRED = """
from pydantic import Field
from cobo_dist import Algorithm, AlgorithmSection, register

@register.algorithm("mine")
class Mine(Algorithm):
    class Config(AlgorithmSection):
        mu: float
        sizes: list[int] = Field(default_factory=lambda: [3, 4], description="some sizes")
    def round(self, t): ...
"""


def test_help_and_refusals_of_required_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(REQUIRED)
    assert main([f"plugins={plugin}", "--help", "algorithm.mine"]) == 0
    shown = capsys.readouterr().out
    assert "algorithm.mu  (float, required)\n  algorithm.sizes" in shown
    assert "default [3, 4])\n      some sizes" in shown
    assert "Undefined" not in shown
    assert "None" not in shown
    assert main([f"plugins={plugin}", "algorithm.name=mine"]) == 2
    assert capsys.readouterr().err == "error: algorithm.mu must be given\n"


def test_help_says_which_plugin_cannot_be_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("1/0\n")
    assert main([f"plugins={plugin}", "--help", "algorithm.mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "line 1: ZeroDivisionError" in line
    for topic in ("algorithm.cobo", "run.seed", ""):
        assert main([f"plugins={plugin}", "--help", *filter(None, [topic])]) == 0
        assert "line 1: ZeroDivisionError" in capsys.readouterr().out
