"""Who may import whom: all imports of the package are read and held against the list of rooms."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import cobo_dist

PACKAGE = Path(cobo_dist.__file__).parent
SHARED = {"errors", "settings", "clock"}
"""What every room but `maths` may use: how things go wrong, and the base of config classes."""

ROOMS: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "settings": set(),
    "clock": set(),
    "command_line": set(),
    "maths": {"maths"},
    "algorithms": {"algorithms", "maths"} | SHARED,
    "clients": {"clients", "maths"} | SHARED,
    "tasks": {"tasks", "clients", "maths"} | SHARED,
    "comm": {"comm", "maths"} | SHARED,
    "reports": {"reports", "errors"},
    "report": {"reports", "errors", "__init__"},
    "sweeps": {"sweeps", "config", "errors"},
    "sweep": {"sweeps", "errors"},
}
"""For each room the rooms it may import; a room not listed here sees all but `reports`."""

SEES_ALL = {"config", "run", "train", "plan", "prepare", "doctor"}
DOORS = {"train", "report", "sweep", "plan", "prepare", "doctor"}
COMMUNICATION = ("torch.distributed", "mpi4py")


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Return the full names of all modules that the source of `module` imports, anywhere in it.

    Functions, `if TYPE_CHECKING`, relative imports, `import_module("...")` and uses such as
    `torch.distributed.send` after `import torch` count.
    """
    found: set[str] = set()
    home = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            if ast.unparse(node).startswith(COMMUNICATION):
                found.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            literal = node.args[0]
            if called.endswith(("import_module", "__import__")) and isinstance(
                literal, ast.Constant
            ):
                found.add(str(literal.value))
    return found


def violations(package: Path) -> list[str]:
    """Return `module imports module: why not` for every import that the rooms forbid."""
    found = []
    rooms = {path.stem for path in package.iterdir() if path.is_dir() or path.suffix == ".py"}
    for path in sorted(package.rglob("*.py")):
        parts = ["cobo_dist", *path.relative_to(package).with_suffix("").parts]
        room = parts[1]
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        if room not in ROOMS and room not in SEES_ALL:
            found.append(f"{module}: the room {room} has no rule")
            continue
        for name in sorted(imports(path.read_text(encoding="utf-8"), module, is_package)):
            if name.startswith(COMMUNICATION) and room != "comm":
                found.append(f"{module} imports {name}: only comm communicates")
            steps = name.split(".")
            if steps[0] != "cobo_dist" or len(steps) < 2:
                continue
            other = steps[1] if steps[1] in rooms else "__init__"
            if room in SEES_ALL:
                allowed = other != "reports" and (other not in DOORS or other == room)
            else:
                allowed = other in ROOMS[room]
            if not allowed:
                found.append(f"{module} imports {name}: {room} may not see {other}")
    return found


def test_every_room_keeps_to_itself() -> None:
    assert violations(PACKAGE) == []


def test_the_reader_finds_the_imports_that_are_there() -> None:
    """It would be no use if it read nothing."""
    for file, name in {
        "algorithms/cobo.py": "cobo_dist.maths.sampling",
        "algorithms/oracle.py": "cobo_dist.algorithms.fedavg",
        "tasks/supervised.py": "cobo_dist.clients.client_batch",
        "comm/session.py": "torch.distributed",
        "comm/transports/mpi_world.py": "mpi4py",  # inside a function
        "report.py": "cobo_dist.reports.reading",
        "training/trainer.py": "cobo_dist.comm.exchange",
    }.items():
        module = "cobo_dist." + file.removesuffix(".py").replace("/", ".")
        assert name in imports((PACKAGE / file).read_text(encoding="utf-8"), module, False), file


@pytest.mark.parametrize(
    ("file", "source", "why"),
    [
        ("maths/flat.py", "from cobo_dist.errors import ConfigError", "maths may not see errors"),
        ("maths/flat.py", "import cobo_dist.settings", "maths may not see settings"),
        ("maths/flat.py", "import torch\nx = torch.distributed.get_rank()", "only comm"),
        ("algorithms/cobo.py", "from cobo_dist.tasks import digits", "may not see tasks"),
        ("algorithms/cobo.py", "from cobo_dist import run", "may not see run"),
        ("algorithms/cobo.py", "from ..comm.plans import plan_meeting", "may not see comm"),
        ("algorithms/cobo.py", "from .. import clients", "may not see clients"),
        ("algorithms/cobo.py", "import torch.distributed as dist", "only comm"),
        (
            "clients/client_batch.py",
            "def f():\n    from cobo_dist.comm import plans",
            "may not see comm",
        ),
        (
            "clients/client_batch.py",
            "from cobo_dist.algorithms.base import Round",
            "may not see algorithms",
        ),
        ("clients/client_batch.py", "from cobo_dist.tasks.base import Task", "may not see tasks"),
        ("tasks/digits.py", "import cobo_dist.comm.traffic_counter", "may not see comm"),
        (
            "tasks/digits.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from cobo_dist.algorithms.base import Round",
            "may not see algorithms",
        ),
        ("tasks/digits.py", "from torch import distributed", "only comm"),
        ("tasks/digits.py", "from torch.distributed import send", "only comm"),
        (
            "comm/pair_plan.py",
            "from cobo_dist.clients.client_batch import ClientBatch",
            "may not see clients",
        ),
        ("comm/pair_plan.py", "from cobo_dist.training.build import run", "may not see run"),
        ("comm/pair_plan.py", "from cobo_dist.config import Config", "may not see config"),
        ("training/build.py", "import mpi4py.MPI", "only comm"),
        ("training/build.py", "from cobo_dist.reports import table", "run may not see reports"),
        ("training/build.py", "from cobo_dist.train import main", "run may not see train"),
        ("train.py", "import importlib\nimportlib.import_module('cobo_dist.reports')", "reports"),
        ("train.py", "from .report import main", "train may not see report"),
        ("config.py", "from cobo_dist.reports.style import x", "config may not see reports"),
        ("reports/table.py", "from cobo_dist.maths.graph import LINK", "may not see maths"),
        ("reports/table.py", "from cobo_dist.settings import Section", "may not see settings"),
        ("report.py", "from cobo_dist.config import Config", "report may not see config"),
        ("errors.py", "from cobo_dist.settings import Section", "errors may not see settings"),
        ("cellar/rats.py", "x = 1", "the room cellar has no rule"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, source: str, why: str) -> None:
    rooms = ("maths", "algorithms", "clients", "tasks", "comm", "run", "reports")
    for room in rooms:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
    for door in ("__init__", "errors", "settings", "config", "train", "report"):
        (tmp_path / f"{door}.py").touch()
    assert violations(tmp_path) == []
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(source)
    found = violations(tmp_path)
    assert found
    assert all(why in one for one in found), found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("comm/session.py", "import torch.distributed as dist\nfrom mpi4py import MPI"),
        ("tasks/digits.py", "from cobo_dist.clients.engines import Batch\nfrom .base import Task"),
        (
            "training/build.py",
            "from cobo_dist.comm.pair_plan import x\nfrom cobo_dist.algorithms import y",
        ),
        (
            "report.py",
            "from cobo_dist.reports.table import x\nfrom cobo_dist.errors import ConfigError",
        ),
        ("train.py", "from cobo_dist import __version__\nfrom cobo_dist.training.build import run"),
        ("maths/flat.py", "import torch\nfrom . import seeds\nx = torch.distributions.Normal"),
    ],
)
def test_what_is_allowed_is_let_through(tmp_path: Path, file: str, source: str) -> None:
    for room in ("maths", "algorithms", "clients", "tasks", "comm", "run", "reports"):
        (tmp_path / room).mkdir()
    for door in ("__init__", "errors", "settings", "config", "train", "report"):
        (tmp_path / f"{door}.py").touch()
    (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []


# -- no work at import time ----------------------------------------------------------------------------

PROBE = """
import sys, json, os, threading, importlib
import torch
before = threading.active_count(), torch.get_num_threads(), dict(os.environ)
import cobo_dist.train
heavy = [m for m in ("matplotlib", "sklearn", "tensorboard", "mpi4py", "transformers", "datasets",
                     "torchvision", "pandas", "cobo_dist.reports") if m in sys.modules]
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch.distributed as dist
print(json.dumps({
    "heavy": heavy,
    "group": dist.is_initialized(),
    "cuda": torch.cuda.is_initialized(),
    "unchanged": before == (threading.active_count(), torch.get_num_threads(), dict(os.environ)),
    "mpi": "mpi4py.MPI" in sys.modules,
}))
"""


def test_importing_does_no_work(tmp_path: Path) -> None:
    """No group, no GPU, no MPI, no threads, no environment, no files, no words, no heavy library."""
    names = [
        ".".join(["cobo_dist", *path.relative_to(PACKAGE).with_suffix("").parts])
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.stem != "__init__"
    ]
    assert len(names) > 30
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 1, "modules print nothing"
    assert json.loads(lines[0]) == {
        "heavy": [], "group": False, "cuda": False, "unchanged": True, "mpi": False,
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []
