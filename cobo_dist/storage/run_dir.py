"""The run folder: what is where, and writing it so that a reader never sees half a file."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage.disk import writing

LIBRARIES = (
    "cobo_dist", "torch", "torchvision", "numpy", "safetensors", "scikit-learn",
    "transformers", "peft", "datasets", "mpi4py",
)  # fmt: skip
LEFT_BY_A_RUN = (
    "config.yaml", "env.json", "metrics.jsonl", "W.npz", "summary.json", "status.json",
    "models", "figures", "tensorboard", "errors", "checkpoints", "profile",
)  # fmt: skip


class RunDir:
    """One run's folder; only the coordinator writes, except for models and error reports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claimed = False  # whether this run made it: only then is a failure written into it

    def refuse_unusable(self, overwrite: bool) -> None:
        """Look, without writing, whether a run can go here; `overwrite`: an earlier run is no obstacle.

        Raises:
            ConfigError: it is a file, holds an earlier run, or cannot be written.
        """
        try:
            self._refuse_unusable(overwrite)
        except OSError as error:
            raise ConfigError(
                f"run.dir={self.path} is no usable path: {error.strerror}; name another run.dir"
            ) from None

    def _refuse_unusable(self, overwrite: bool) -> None:
        for name in self.path.parts:
            if len(os.fsencode(name)) > 255:
                raise ConfigError(
                    f"run.dir={self.path}: a name in it is too long; name another run.dir"
                )
        for part in (self.path, *self.path.parents):
            if part.exists() and not part.is_dir():
                raise ConfigError(f"run.dir={self.path}: {part} is a file; name another run.dir")
        held = [name for name in LEFT_BY_A_RUN if (self.path / name).exists()]
        if held and "metrics.jsonl" not in held:
            raise ConfigError(
                f"run.dir={self.path} holds {', '.join(held)} but no run (no metrics.jsonl), so it "
                "is not replaced; name another run.dir"
            )
        if held and not overwrite:
            raise ConfigError(
                f"run.dir={self.path} already holds a run; set run.resume=auto to go on with it, "
                "run.overwrite=true to replace it, or name another run.dir"
            )
        nearest = next(part for part in (self.path, *self.path.parents) if part.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ConfigError(
                f"run.dir={self.path}: no permission to write in {nearest}; name another run.dir"
            )

    def create(self) -> None:
        """Make the folder and remove what an earlier run left (never anything else).

        Raises:
            ConfigError: the file system says no.
        """
        try:
            for name in LEFT_BY_A_RUN:
                _remove(self.path / name)
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "metrics.jsonl").touch()  # marks the folder as a run's
        except OSError as error:
            raise ConfigError(f"run.dir={self.path} cannot be made: {error.strerror}") from None

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints lie."""
        return self.path / "checkpoints"

    def reopen(self, metrics: Path, size: int, found: Path) -> None:
        """Make the folder ready to go on from the checkpoint `found`, here or of another run.

        The log holds the first `size` bytes of `metrics`. Later checkpoints, damaged or of a future that
        will not come, are set aside; what only a finished run leaves goes.

        Raises:
            ConfigError: the file system says no.
        """
        own = self.path / "metrics.jsonl"
        try:
            if metrics.resolve() == own.resolve():
                os.truncate(own, size)
            else:
                draft = own.with_suffix(".part")
                with metrics.open("rb") as source, draft.open("wb") as target:
                    target.write(source.read(size))
                draft.replace(own)
            self._set_aside_after(checkpoint.round_of(found) or 0)
            for name in ("summary.json", "status.json", "models", "errors"):
                _remove(self.path / name)
        except OSError as error:
            raise ConfigError(
                f"run.dir={self.path} cannot be made ready: {error.strerror}"
            ) from None

    def _set_aside_after(self, r: int) -> None:
        for draft in self.checkpoints.glob("*.part"):
            _remove(draft)
        for later in checkpoint.checkpoints(self.checkpoints):
            if (checkpoint.round_of(later) or 0) > r:
                _remove(later.with_suffix(".aside"))
                later.rename(later.with_suffix(".aside"))

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file, or nothing: into a neighbour first, then renamed.

        Raises:
            RunFailure: the file system says no.
        """
        target = self.path / name
        draft = target.with_name(target.name + ".part")
        with writing(target, len(text)):
            draft.write_text(text, encoding="utf-8")
            draft.replace(target)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file's content; empty where there is none that can be read."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file as `write_text` does."""
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_weights(
        self,
        rounds: Sequence[int],
        weights: Sequence[NDArray[np.float32]],
        clusters: Sequence[int] | None,
        names: Sequence[str] = (),
    ) -> None:
        """Write W.npz: `rounds` int64 [k], `weights` float32 [k, n, n], and what rows and columns are.

        That is `clusters` int64 [n] where they are known, and the clients' `names` [n] where they have any.

        Raises:
            RunFailure: the file system says no.
        """
        arrays: dict[str, NDArray[Any]] = {
            "rounds": np.asarray(rounds, dtype=np.int64),
            "weights": np.stack(weights).astype(np.float32),
        }
        if clusters is not None:
            arrays["clusters"] = np.asarray(clusters, dtype=np.int64)
        if names:
            arrays["names"] = np.asarray(names, dtype=np.str_)
        target, draft = self.path / "W.npz", self.path / "W.npz.part"
        with writing(target, arrays["weights"].nbytes):
            with draft.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # keys are arrays' names
            draft.replace(target)

    def append_weights(
        self,
        r: int,
        lists: Mapping[str, NDArray[Any]],
        clusters: Sequence[int] | None,
        names: Sequence[str] = (),
    ) -> None:
        """Add to W.npz what W lists after round r, each array as `r.name`; the first adds what rows are.

        Raises:
            RunFailure: the file system says no.
        """
        arrays = {f"{r}.{name}": one for name, one in lists.items()}
        target, draft = self.path / "W.npz", self.path / "W.npz.part"
        if r and target.exists():
            before = target.stat().st_size
        else:
            before = 0
            if clusters is not None:
                arrays["clusters"] = np.asarray(clusters, dtype=np.int64)
            if names:
                arrays["names"] = np.asarray(names, dtype=np.str_)
        with writing(target, before + sum(one.nbytes for one in arrays.values())):
            # A copy: whoever interrupts this leaves the file as it was.
            if before:
                shutil.copyfile(target, draft)
            with zipfile.ZipFile(draft, "a" if before else "w", zipfile.ZIP_DEFLATED) as file:
                for name, array in arrays.items():
                    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            draft.replace(target)

    def read_weights(self) -> bytes:
        """Return W.npz as it is."""
        return (self.path / "W.npz").read_bytes()

    def replace_weights(self, content: bytes) -> None:
        """Write W.npz as `read_weights` gave it."""
        target, draft = self.path / "W.npz", self.path / "W.npz.part"
        with writing(target, len(content)):
            draft.write_bytes(content)
            draft.replace(target)

    def status(self, exit_code: int, status: str, reason: str = "") -> None:
        """Write status.json: how the run ended and why."""
        self.write_json("status.json", {"exit_code": exit_code, "status": status, "reason": reason})

    def error_report(self, rank: int, text: str) -> Path:
        """Write one rank's traceback, for those who must look deeper than the one line."""
        path = self.path / "errors" / f"rank_{rank:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")  # rank 0 may be looking for it
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
        return path

    def error_reports(self) -> dict[int, Path]:
        """Return the error reports that are there, by rank."""
        found = (self.path / "errors").glob("rank_*.txt")
        return {int(path.stem.removeprefix("rank_")): path for path in sorted(found)}

    def model_path(self, client: int) -> Path:
        """Where a client's last model goes; the task gives it a suffix, or makes it a folder."""
        return self.path / "models" / f"client_{client:05d}"


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def describe_environment() -> dict[str, Any]:
    """Return versions, command line and revision. Environment variables stay out: they hold secrets."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # with its build, which the metadata leave out
    return {
        "versions": versions,
        "platform": platform.platform(),
        "command": sys.argv,
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    """Return the revision that a frozen copy of the code names, or that of the checkout it runs from."""
    here = Path(__file__).resolve().parent
    named = here.parent.parent / "REVISION"  # slurm/submit.py writes it
    if named.is_file():
        return named.read_text(encoding="utf-8").strip() or None
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
