"""The run folder: checks and creates it, and replaces files so that no reader sees half of one."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cobo_dist.errors import ConfigError
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage import schema
from cobo_dist.storage.disk import SMALL_FILE_BYTES, disk_guard, explain_start
from cobo_dist.storage.files import MAX_METRICS_BYTES, kind_of, open_file, remove_tree
from cobo_dist.storage.owner import Ownership, TakenOver
from cobo_dist.storage.owner_record import refuse_living
from cobo_dist.storage.reading import SchemaError, read_record
from cobo_dist.storage.schema import (
    METRICS_FILE,
    OWNER_DIR,
    RUN_FILES,
    RUN_FOLDERS,
    Environment,
    Record,
    Status,
)  # fmt: skip

_WRITTEN = re.compile(r"(client_|round-|rank_)\d{5,}.*|events\.out\.tfevents\..*|.*\.part")
"""Names that a run gives in its folders but `figures`; from a linked folder, only these are removed."""


class RunDir:
    """One run's folder. Only rank 0 writes into it, except for models and error reports.

    While a run owns the folder, everything is written under a draft's name that holds the owner's epoch. It
    gets its real name only if the run still owns the folder. The next owner removes drafts first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner: Ownership | None = (
            None  # None: it is not this run's, so no failure is written into it
        )

    @property
    def epoch(self) -> int:
        """The number of this run's start in the folder; 0 if it does not own the folder."""
        return self.owner.owner.epoch if self.owner else 0

    def taken_over(self) -> TakenOver | None:
        """Return an error if this run owned the folder and another run took it; else None."""
        return self.owner.taken_over() if self.owner else None

    def check_owner(self) -> None:
        """Check that no other run took the folder.

        Raises:
            TakenOver: one did.
        """
        if self.owner:
            self.owner.check()

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
        self._refuse_irregular()
        refuse_living(self.path)
        held = [name for name in RUN_FILES if _holds_anything(self.path / name)]
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

    def _refuse_irregular(self) -> None:
        """Refuse what a run would follow out of its folder, or would wait for: links, pipes, devices.

        A folder may be a link to a folder, for example of checkpoints on a faster disk.
        """
        for name in (*RUN_FILES, OWNER_DIR):
            try:
                mode = (self.path / name).lstat().st_mode
                if stat.S_ISLNK(mode) and name in RUN_FOLDERS and (self.path / name).is_dir():
                    continue
            except FileNotFoundError:
                continue
            if (kind := kind_of(mode)) and (
                name not in (*RUN_FOLDERS, OWNER_DIR) or not stat.S_ISDIR(mode)
            ):
                raise ConfigError(
                    f"run.dir={self.path}: {name} is {kind}, and a run writes only into its own folder; "
                    "remove it, or name another run.dir"
                )

    def create(self) -> None:
        """Create the folder, and remove the files of an earlier run (`RUN_FILES`, nothing else).

        Raises:
            ConfigError: the file system refused.
        """
        try:
            self._remove_drafts()
            # metrics.jsonl marks the folder as a run's. It goes last, so a start that fails can be repeated.
            for name in sorted(RUN_FILES, key=lambda name: name == METRICS_FILE):
                _remove(self.path / name)
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / METRICS_FILE).touch()  # marks the folder as a run's
        except OSError as error:
            raise ConfigError(
                explain_start(error, self.path, SMALL_FILE_BYTES, "name another run.dir")
            ) from None

    def _remove_drafts(self) -> None:
        """Remove what earlier owners were writing: one that wakes up cannot give it its name any more."""
        for draft in self.path.glob("*.part"):
            if draft.name.startswith(tuple(f"{name}." for name in RUN_FILES)):
                _remove(draft)
        for draft in (self.path / schema.FIGURES_DIR).glob("*.part"):
            _remove(draft)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / schema.CHECKPOINTS_DIR

    def reopen(self, metrics: Path, size: int, found: Path) -> list[str]:
        """Prepare the folder to continue from the checkpoint `found`, of this run or of another.

        metrics.jsonl gets the first `size` bytes of `metrics`. It is a new file, so that an earlier owner
        that still has the old one open appends no row to it. Later checkpoints are renamed to `.aside`:
        they are damaged, or of rounds that are now repeated. Files of a finished run are removed.

        Returns warnings: old checkpoints that stay where they are.

        Raises:
            ConfigError: the file system refused.
        """
        try:
            self._remove_drafts()
            own = self.path / METRICS_FILE
            draft = self._draft(METRICS_FILE)
            with open_file(metrics) as source, draft.open("wb") as target:
                _copy(source, target, min(size, MAX_METRICS_BYTES))
            draft.replace(own)
            for name in (
                schema.SUMMARY_FILE,
                schema.STATUS_FILE,
                schema.MODELS_DIR,
                schema.ERRORS_DIR,
            ):
                _remove(self.path / name)
        except OSError as error:
            other = f"resume into another run.dir with run.resume={found}"
            raise ConfigError(explain_start(error, self.path, size, other)) from None
        return self._set_aside_after(checkpoint.round_of(found) or 0)

    def _set_aside_after(self, r: int) -> list[str]:
        """Rename the checkpoints after round r, and remove unfinished ones; return what could not be done."""
        warnings = []
        later = [
            one
            for one in checkpoint.checkpoints(self.checkpoints)
            if (checkpoint.round_of(one) or 0) > r
        ]
        for one in (*self.checkpoints.glob("*.part"), *later):
            try:
                if one in later:
                    one.rename(checkpoint.unused_name(one, ".aside"))
                elif one.is_symlink() or not one.is_dir():
                    one.unlink()
                else:
                    checkpoint.remove(one)
            except OSError as error:
                warnings.append(f"{one} is of no use and cannot be removed: {error.strerror}")
        return warnings

    def environment(self) -> Environment:
        """Return env.json; one without entries where there is none that can be read."""
        try:
            return read_record(self.path / schema.ENVIRONMENT_FILE, Environment)
        except (OSError, SchemaError):
            return Environment()

    def _draft(self, name: str) -> Path:
        return self.path / f"{name}.{self.epoch}.part"

    def publish(self, draft: Path, target: Path) -> None:
        """Give a draft its real name, if this run still owns the folder.

        Raises:
            TakenOver: another run took it.
            OSError: the file system refused.
        """
        try:
            self.check_owner()
            draft.replace(target)
        except TakenOver:
            _remove(draft)
            raise
        except FileNotFoundError:
            self.check_owner()  # the new owner removed the draft after the check
            raise

    @contextmanager
    def replacing(self, name: str, nbytes: int) -> Iterator[Path]:
        """Yield the path to write a file of about `nbytes` bytes to; at the end it gets its name.

        Raises:
            RunFailure: the file system refused, or another run took the folder; the file is as it was.
        """
        target, draft = self.path / name, self._draft(name)
        with disk_guard(target, nbytes):
            yield draft
            self.publish(draft, target)

    @contextmanager
    def saving_model(self, client: int, rank: int, nbytes: int) -> Iterator[Path]:
        """Yield where to write a client's model, to which the task adds a suffix, or makes it a folder.

        Raises:
            RunFailure: as `replacing`.
        """
        target = self.path / schema.MODELS_DIR / schema.client_name(client)
        with (
            disk_guard(target, nbytes),
            self.filling(schema.MODELS_DIR, f"rank_{rank:05d}") as drafts,
        ):
            yield drafts / target.name

    @contextmanager
    def filling(self, name: str, writer: str) -> Iterator[Path]:
        """Yield a folder for files of the sub-folder `name`; at the end each gets its place there.

        `writer` tells apart those who write at the same time.

        Raises:
            TakenOver: another run took the folder; the files are removed.
            OSError: the file system refused.
        """
        target = self.path / name
        self.check_owner()
        # Within the sub-folder, which may be a link to another disk. Rank 0 made the run folder on its own
        # host: without a shared disk it is missing here.
        drafts = target / f"{writer}.{self.epoch}.part"
        drafts.mkdir(exist_ok=True, parents=True)
        try:
            yield drafts
            for saved in sorted(drafts.iterdir()):
                self.publish(saved, target / saved.name)
        finally:
            _remove(drafts)

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
        draft = path.with_suffix(f".{self.epoch}.part")  # rank 0 may be reading the folder
        draft.write_text(text, encoding="utf-8")
        self.publish(draft, path)
        return path

    def error_reports(self) -> dict[int, Path]:
        """Return the error reports by rank."""
        found = (self.path / schema.ERRORS_DIR).glob("rank_*.txt")
        return {int(path.stem.removeprefix("rank_")): path for path in sorted(found)}


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Copy the first `size` bytes through to the disk."""
    while size > 0 and (piece := source.read(min(size, 1 << 20))):
        target.write(piece)
        size -= len(piece)
    target.flush()
    os.fsync(target.fileno())


def _holds_anything(path: Path) -> bool:
    """Return whether there is a file or folder of an earlier run; a link counts for what a run left in it."""
    if path.is_symlink() and path.is_dir():
        return any(_WRITTEN.fullmatch(name) for name in os.listdir(path))
    return path.exists()


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it exists; of a folder that is a link, what a run wrote into it."""
    if path.is_symlink() and path.is_dir() and path.name in RUN_FOLDERS:
        for name in filter(_WRITTEN.fullmatch, os.listdir(path)):
            _remove(path / name)
    elif path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
