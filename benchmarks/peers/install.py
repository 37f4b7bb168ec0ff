"""A virtual environment for each peer, installed from the package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENTS = {"flower": "flwr[simulation]", "pfl": "pfl[pytorch]"}


class NotInstalled(Exception):
    """A peer could not be installed; the message is one line with the reason."""


def cache() -> Path:
    """Return the default folder of the environments."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "cobo_dist" / "peers"


def environment(peer: str, into: Path) -> Path:
    """Return the Python of a peer's environment, which is created if it does not exist.

    Packages of the Python that runs this come after its own, so torch is not installed a second time if the
    peer accepts the installed version.

    Raises:
        NotInstalled: the index does not have the peer, or it does not support this Python.
    """
    home = into / peer
    python, done = home / "bin" / "python", home / "installed"
    if done.exists():
        return python
    shutil.rmtree(home, ignore_errors=True)  # one that was not finished
    print(f"installing {REQUIREMENTS[peer]} into {home}", file=sys.stderr, flush=True)
    _call([sys.executable, "-m", "venv", str(home)])
    packages = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    (Path(packages) / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _call([str(python), "-m", "pip", "install", "--quiet", REQUIREMENTS[peer]])
    done.touch()
    return python


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in words if line.startswith("ERROR")]
        raise NotInstalled(([*words, *errors] or ["no reason given"])[-1])
