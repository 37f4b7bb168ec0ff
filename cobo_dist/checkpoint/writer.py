"""Takes checkpoints: every rank writes its clients' files, all agree, and rank 0 seals the folder.

A checkpoint that not all ranks could write never gets its name, and the earlier ones stay.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors.numpy import save as save_arrays
from torch import Tensor

from cobo_dist.algorithms.base import Algorithm
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.exchange import Exchange
from cobo_dist.errors import RunFailure
from cobo_dist.run_config import RunConfig
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage import disk
from cobo_dist.storage.checkpoint_format import Manifest
from cobo_dist.tracking.run_logger import RunLogger
from cobo_dist.tracking.weight_snapshots import row_tensors


def client_views(clients: ClientBatch, algorithm: Algorithm, row: int) -> dict[str, Tensor]:
    """Return all of one client's state by name, but for its row of W: to save, or to fill in place."""
    rows = algorithm.state().rows
    return {
        **clients.client_state(row),
        **{f"algorithm.{name}": held[row] for name, held in rows.items()},
    }


class CheckpointWriter:
    """One rank's side of the checkpoints of a run."""

    def __init__(
        self,
        root: Path,
        settings: RunConfig,
        config_text: str,
        about: Manifest,
        clients: ClientBatch,
        exchange: Exchange,
        algorithm: Algorithm,
        run_logger: RunLogger | None,
    ) -> None:
        """Keep checkpoints in the folder `root`; `about` is what all their manifests have in common."""
        self.root, self.settings, self.config_text, self.about = root, settings, config_text, about
        self.clients, self.exchange, self.algorithm = clients, exchange, algorithm
        self.run_logger = run_logger
        self._draft: PendingCheckpoint | None = None

    def is_due(self, r: int) -> bool:
        """Return whether round r ends with a checkpoint, if nothing else happens."""
        every = self.settings.checkpoint_every
        return r == self.settings.rounds or bool(every and r % every == 0)

    def is_written(self) -> bool:
        """Return whether this rank has written its part of a checkpoint that is not sealed yet."""
        return self._draft is not None and self._draft.is_written()

    def begin(self, r: int, seconds: float) -> None:
        """Take a checkpoint after round r; where memory has room, it is written while training goes on.

        All ranks call this after the same round, with all rows flushed, after `seconds` of training.

        Raises:
            RunFailure: as `settle`, of the checkpoint before.
        """
        self.wait()
        needed = self._bytes()
        self._draft = PendingCheckpoint(
            checkpoint.folder_of(self.root, r).with_suffix(".part"), r, needed
        )
        files = self._files(seconds)
        if self.settings.checkpoint_writing == "auto" and needed < available_memory() / 2:
            self._draft.write_along(list(files))
        else:
            self._draft.write(files)  # holds one client's copy at a time

    def wait(self) -> str:
        """Wait until a checkpoint under way is written, and seal it if all ranks could write their part.

        All ranks call this together. Returns why there is no checkpoint; empty if all is well.

        Raises:
            RunFailure: the same on all ranks, if run.on_failed_checkpoint=stop and there is none.
        """
        draft, self._draft = self._draft, None
        if draft is None:
            return ""
        draft.wait()
        mine = json.dumps([draft.failure, draft.files]).encode()
        records = [json.loads(record) for record in self.exchange.gather(mine)]
        failure = ""
        if self.run_logger is not None:
            failure = next((f"rank {k}: {why}" for k, (why, _) in enumerate(records) if why), "")
            files = {name: (size, sha) for _, one in records for name, (size, sha) in one.items()}
            failure = failure or self._commit(draft, files)
            if failure:
                shutil.rmtree(draft.folder, ignore_errors=True)
                failure = f"no checkpoint after round {draft.round}: {failure}; {self._last_good()}"
        failure = self.exchange.transport.broadcast(failure.encode()).decode()
        if failure and self.settings.on_failed_checkpoint == "stop":
            raise RunFailure(failure)
        if failure and self.run_logger is not None:
            self.run_logger.warn(draft.round, "checkpoint", failure)
        return failure

    def _commit(self, draft: PendingCheckpoint, files: dict[str, tuple[int, str]]) -> str:
        about = self.about
        manifest = Manifest(
            draft.round, about.clients, about.ranks, about.data, about.versions, files
        )
        try:
            checkpoint.complete(draft.folder, manifest)
            for old in checkpoint.checkpoints(self.root)[self.settings.keep_checkpoints :]:
                checkpoint.remove(old)
        except OSError as error:
            return draft.explain(error)
        return ""

    def _last_good(self) -> str:
        found = checkpoint.checkpoints(self.root)
        return f"the last good one is {found[0]}" if found else "there is none yet"

    def _files(self, seconds: float) -> Iterator[tuple[str, bytes]]:
        """Yield the name and content of each file that this rank writes."""
        for row, client in enumerate(self.clients.ids):
            views = client_views(self.clients, self.algorithm, row)
            weights = row_tensors(self.algorithm.weights, row)
            yield checkpoint.client_file(client), checkpoint.pack(views | weights)
        if self.run_logger is not None:
            if shared := self.algorithm.state().shared:
                yield checkpoint.SHARED, checkpoint.pack(shared)
            yield checkpoint.CONFIG, self.config_text.encode()
            content, arrays = self.run_logger.state(seconds)
            yield checkpoint.BOOK, json.dumps(content).encode()
            yield checkpoint.BOOK_ARRAYS, save_arrays(arrays)

    def _bytes(self) -> int:
        """Return about how many bytes this rank writes."""
        held = client_views(self.clients, self.algorithm, 0)
        held |= row_tensors(self.algorithm.weights, 0)
        mine = len(self.clients.ids) * sum(one.nbytes for one in held.values())
        return mine + sum(one.nbytes for one in self.algorithm.state().shared.values())


class PendingCheckpoint:
    """One rank's part of a checkpoint while it is written."""

    def __init__(self, folder: Path, r: int, needed: int) -> None:
        self.folder, self.round, self.needed = folder, r, needed
        self.files: dict[str, tuple[int, str]] = {}
        self.failure = ""
        self._thread: threading.Thread | None = None

    def write(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write the files; a failure is kept, not raised, since all ranks must hear of it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in files:
                self.files[name] = checkpoint.write(self.folder / name, content)
        except OSError as error:
            self.failure = self.explain(error)

    def write_along(self, files: list[tuple[str, bytes]]) -> None:
        """Write the files while the caller goes on."""
        self._thread = threading.Thread(target=self.write, args=(files,), name="checkpoint")
        self._thread.start()

    def is_written(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def explain(self, error: OSError) -> str:
        """Return one line for people about a file system that says no."""
        remedy = "make room, or lower run.keep_checkpoints"
        return disk.explain(error, self.folder, self.needed, remedy)


def available_memory() -> float:
    """Return how many bytes of memory are free for the asking on this host."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024.0 * float(line.split()[1])
    except OSError:
        pass
    return 0.0  # unknown: none
