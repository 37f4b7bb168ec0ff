"""The revision in `env.json` is that of the code, never that of a checkout that the code merely lies in."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from cobo_dist.storage import environment


def git(folder: Path, *arguments: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_an_installed_package_has_no_revision(tmp_path: Path) -> None:
    """An environment inside another project's checkout, before and after the code is committed there."""
    copy = tmp_path / "site-packages" / "cobo_dist" / "storage" / "environment.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(environment.__file__, copy)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "another project")
    spec = importlib.util.spec_from_file_location("copied_environment", copy)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module._git_revision() is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "this project")
    assert module._git_revision() == git(tmp_path, "rev-parse", "HEAD")
