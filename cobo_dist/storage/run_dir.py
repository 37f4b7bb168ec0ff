"""The run folder: checks and creates it, and replaces files so that no reader sees half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cobo_dist.errors import ConfigError
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage import schema
from cobo_dist.storage.disk import disk_guard
from cobo_dist.storage.reading import SchemaError, read_record
from cobo_dist.storage.schema import METRICS_FILE, RUN_FILES, Environment, Record, Status


class RunDir:
    """One run's folder. Only rank 0 writes into it, except for models and error reports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claimed = False  # whether it is this run's: only then is a failure written into it

    def refuse_unusable(self, overwrite: bool) -> None:
        """Check, without writing, whether a run can be written here.

        `overwrite`: an earlier run may be replaced.

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
        held = [name for name in RUN_FILES if (self.path / name).exists()]
        if held and METRICS_FILE not in held:
            raise ConfigError(
                f"run.dir={self.path} holds {', '.join(held)} but no run (no {METRICS_FILE}), so "
                "it is not replaced; name another run.dir"
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
        """Create the folder, and remove the files of an earlier run (`RUN_FILES`, nothing else).

        Raises:
            ConfigError: the file system refused.
        """
        try:
            for name in RUN_FILES:
                _remove(self.path / name)
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / METRICS_FILE).touch()  # marks the folder as a run's
        except OSError as error:
            raise ConfigError(f"run.dir={self.path} cannot be made: {error.strerror}") from None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / schema.CHECKPOINTS_DIR

    def reopen(self, metrics: Path, size: int, found: Path) -> None:
        """Prepare the folder to continue from the checkpoint `found`, of this run or of another.

        metrics.jsonl gets the first `size` bytes of `metrics`. Later checkpoints are renamed to `.aside`:
        they are damaged, or of rounds that are now repeated. Files of a finished run are removed.

        Raises:
            ConfigError: the file system refused.
        """
        own = self.path / METRICS_FILE
        try:
            if metrics.resolve() == own.resolve():
                os.truncate(own, size)
            else:
                draft = own.with_suffix(".part")
                with metrics.open("rb") as source, draft.open("wb") as target:
                    target.write(source.read(size))
                draft.replace(own)
            self._set_aside_after(checkpoint.round_of(found) or 0)
            for name in (
                schema.SUMMARY_FILE,
                schema.STATUS_FILE,
                schema.MODELS_DIR,
                schema.ERRORS_DIR,
            ):
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

    def environment(self) -> Environment:
        """Return env.json; one without entries where there is none that can be read."""
        try:
            return read_record(self.path / schema.ENVIRONMENT_FILE, Environment)
        except (OSError, SchemaError):
            return Environment()

    @contextmanager
    def replacing(self, name: str, nbytes: int) -> Iterator[Path]:
        """Yield the path to write a file of about `nbytes` bytes to; at the end it gets its name.

        Raises:
            RunFailure: the file system refused; the file is as it was.
        """
        target = self.path / name
        draft = target.with_name(f"{name}.part")
        with disk_guard(target, nbytes):
            yield draft
            draft.replace(target)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file.

        Raises:
            RunFailure: the file system refused.
        """
        with self.replacing(name, len(text)) as draft:
            draft.write_text(text, encoding="utf-8")

    def write_record(self, name: str, record: Record) -> None:
        """Write a JSON file, as `write_text`."""
        self.write_text(name, record.to_json(indent=2) + "\n")

    def write_status(self, exit_code: int, status: str, reason: str = "") -> None:
        """Write status.json: how the run ended and why."""
        self.write_record(
            schema.STATUS_FILE, Status(exit_code=exit_code, status=status, reason=reason)
        )

    def error_report(self, rank: int, text: str) -> Path:
        """Write the traceback of one rank."""
        path = self.path / schema.ERRORS_DIR / f"rank_{rank:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")  # rank 0 may be reading the folder
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
        return path

    def error_reports(self) -> dict[int, Path]:
        """Return the error reports by rank."""
        found = (self.path / schema.ERRORS_DIR).glob("rank_*.txt")
        return {int(path.stem.removeprefix("rank_")): path for path in sorted(found)}

    def model_path(self, client: int) -> Path:
        """Return where a client's last model goes; the task adds a suffix, or makes it a folder."""
        return self.path / schema.MODELS_DIR / schema.client_name(client)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
