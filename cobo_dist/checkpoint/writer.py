"""Writes checkpoints: every rank writes the files of its clients, then rank 0 commits the folder.

A checkpoint is committed only if all ranks could write their files; the earlier ones stay until then.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

from safetensors.numpy import save as save_arrays
from torch import Tensor

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.exchange import Exchange
from cobo_dist.errors import RunFailure
from cobo_dist.host import free_memory
from cobo_dist.maths.host_copy import host_copies
from cobo_dist.run_config import RunConfig
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage import disk, schema
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import FileDigest, Manifest
from cobo_dist.tracking.run_logger import RunLogger
from cobo_dist.tracking.weight_snapshots import row_tensors


def client_views(clients: ClientBatch, algorithm: Algorithm, row: int) -> dict[str, Tensor]:
    """Return views of one client's whole state but its row of W, by name: to save, or to fill in place."""
    rows = algorithm.state().rows
    return clients.client_state(row) | {
        f"algorithm.{name}": held[row] for name, held in rows.items()
    }


MAX_SHARE_OF_FREE_MEMORY = 0.5
"""The largest share of the free memory of a rank that its copy may take."""


class CheckpointWriter:
    """Writes the part of one rank of all checkpoints of a run."""

    def __init__(
        self,
        folder: RunDir,
        run: RunConfig,
        config_text: str,
        about: Manifest,
        clients: ClientBatch,
        exchange: Exchange,
        algorithm: Algorithm,
        run_logger: RunLogger | None,
        ranks_on_host: int,
    ) -> None:
        """Write checkpoints into the run folder.

        Args:
            folder: the run folder; its owner decides whether a checkpoint is committed.
            run: when to write them, how many to keep, what a full disk means.
            config_text: the resolved config, as YAML.
            about: what all manifests have in common.
            clients: the clients of this rank.
            exchange: connects the ranks.
            algorithm: has state of its own, and rows of W.
            run_logger: the logs; None on all ranks but 0.
            ranks_on_host: ranks that share the memory of this rank's host.
        """
        self.folder, self.run, self.config_text, self.about = folder, run, config_text, about
        self.clients, self.exchange, self.algorithm = clients, exchange, algorithm
        self.run_logger, self.ranks_on_host = run_logger, ranks_on_host
        self._pending: PendingCheckpoint | None = None
        self._stuck: set[Path] = set()  # old checkpoints that cannot be removed, and were warned of

    def is_due(self, r: int) -> bool:
        """Return whether a checkpoint is due after round r."""
        every = self.run.checkpoint_every
        return r == self.run.rounds or bool(every and r % every == 0)

    def is_written(self) -> bool:
        """Return whether this rank has written its part of a checkpoint that is not committed yet."""
        return self._pending is not None and self._pending.is_written()

    def begin(self, r: int, seconds: float) -> None:
        """Start a checkpoint after round r and `seconds` of training.

        If a copy fits into memory, it is written while training goes on. All ranks call this after the
        same round, with all rows flushed.

        Raises:
            RunFailure: as `wait`, for the checkpoint before.
        """
        self.wait()
        needed = self._bytes()
        self._pending = PendingCheckpoint(
            checkpoint.draft_of(self.folder.checkpoints, r, self.folder.epoch), r, needed
        )
        rows = range(len(self.clients.ids))
        logs = self._log_files(seconds)
        if self.run.checkpoint_writing == "auto" and self._fits_in_memory(needed):
            self._pending.write_in_background(chain(self._state_files(rows), list(logs)))
        else:  # one client at a time in memory
            parts = (self._state_files([row]) for row in rows)
            self._pending.write(chain(chain.from_iterable(parts), logs))

    def wait(self) -> str:
        """Wait until the pending checkpoint is written; commit it if all ranks could write their part.

        All ranks call this together. Returns why there is no checkpoint; empty if all is well.

        Raises:
            RunFailure: the same on all ranks, if run.on_failed_checkpoint=stop and there is none.
            TakenOver: on rank 0: another run took the run folder.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return ""
        pending.wait()
        mine = pending.failure, {name: one.model_dump() for name, one in pending.files.items()}
        records = [json.loads(one) for one in self.exchange.gather(json.dumps(mine).encode())]
        failure = ""
        if self.run_logger is not None:
            failure = next((f"rank {k}: {why}" for k, (why, _) in enumerate(records) if why), "")
            failure = failure or self.commit(pending, [files for _, files in records])
            if failure:
                shutil.rmtree(pending.folder, ignore_errors=True)
                failure = (
                    f"no checkpoint after round {pending.round}: {failure}; {self._last_good()}"
                )
        failure = self.exchange.transport.broadcast(failure.encode()).decode()
        if failure and self.run.on_failed_checkpoint == "stop":
            raise RunFailure(failure)
        if failure and self.run_logger is not None:
            self.run_logger.warn(pending.round, "checkpoint", failure)
        return failure

    def commit(self, pending: PendingCheckpoint, files: Sequence[Mapping[str, object]]) -> str:
        """Write the manifest over the files of all ranks, and remove old checkpoints; on rank 0 only.

        Returns why there is no checkpoint; empty if all is well.
        """
        digests = {
            name: FileDigest.model_validate(digest)
            for of_rank in files
            for name, digest in of_rank.items()
        }
        manifest = self.about.model_copy(update={"round": pending.round, "files": digests})
        try:
            checkpoint.complete(pending.folder, manifest, self.folder.check_owner)
        except OSError as error:
            return pending.explain(error)
        self._remove_old(pending.round)
        return ""

    def _remove_old(self, r: int) -> None:
        """Remove checkpoints beyond those to keep; one that cannot be removed is warned of once."""
        assert self.run_logger is not None, "rank 0 has the logs"
        self.folder.check_owner()
        for old in checkpoint.checkpoints(self.folder.checkpoints)[self.run.keep_checkpoints :]:
            try:
                checkpoint.remove(old)
            except OSError as error:
                if old not in self._stuck:
                    self._stuck.add(old)
                    self.run_logger.warn(
                        r, "checkpoint",
                        f"the old checkpoint {old} cannot be removed: {error.strerror}; the run goes on, "
                        "remove it by hand",
                    )  # fmt: skip

    def _last_good(self) -> str:
        found = checkpoint.checkpoints(self.folder.checkpoints)
        return f"the last good one is {found[0]}" if found else "there is none yet"

    def _state_files(self, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        """Copy the state of some clients and, with the first one on rank 0, what all share, to the host.

        Returns the name and content of each file, which are made when they are asked for.
        """
        named: dict[tuple[str, str], Tensor] = {}
        matrices = self.algorithm.matrices()
        for row in rows:
            views = client_views(self.clients, self.algorithm, row)
            for name, matrix in matrices.items():
                views |= row_tensors(matrix, row, name)
            file = checkpoint.client_file(self.clients.ids[row])
            named |= {(file, name): one for name, one in views.items()}
        if self.run_logger is not None and 0 in rows:
            shared = self.algorithm.state().shared
            named |= {(schema.SHARED_FILE, name): one for name, one in shared.items()}
        copies, wait = host_copies(named)

        def files() -> Iterator[tuple[str, bytes]]:
            wait()
            for file, group in groupby(copies, key=itemgetter(0)):
                yield file, checkpoint.pack({name: copies[file, name] for _, name in group})

        return files()

    def _log_files(self, seconds: float) -> Iterator[tuple[str, bytes]]:
        """Yield the name and content of the files that only rank 0 writes."""
        if self.run_logger is not None:
            yield schema.CONFIG_FILE, self.config_text.encode()
            state, arrays = self.run_logger.state(seconds)
            yield schema.LOGGER_FILE, state.to_json().encode()
            yield schema.LOGGER_ARRAYS_FILE, save_arrays(arrays)

    def _fits_in_memory(self, nbytes: int) -> bool:
        """Return whether so many bytes can be copied while training goes on."""
        if self.clients.device.type == "cuda":
            nbytes *= 2  # torch rounds pinned memory up to powers of two
        return nbytes < MAX_SHARE_OF_FREE_MEMORY * free_memory(self.ranks_on_host)

    def _bytes(self) -> int:
        """Return about how many bytes this rank writes."""
        held = client_views(self.clients, self.algorithm, 0)
        for name, matrix in self.algorithm.matrices().items():
            held |= row_tensors(matrix, 0, name)
        mine = len(self.clients.ids) * sum(one.nbytes for one in held.values())
        mine += sum(one.nbytes for one in self.algorithm.state().shared.values())
        return mine + (self.run_logger.snapshots.nbytes if self.run_logger is not None else 0)


class PendingCheckpoint:
    """One rank's part of a checkpoint while it is written."""

    def __init__(self, folder: Path, r: int, nbytes: int) -> None:
        self.folder, self.round, self.nbytes = folder, r, nbytes
        self.files: dict[str, FileDigest] = {}
        self.failure = ""
        self._thread: threading.Thread | None = None

    def write(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write the files; a failure is stored, not raised, since all ranks must learn of it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in files:
                self.files[name] = checkpoint.write(self.folder / name, content)
        except OSError as error:
            self.failure = self.explain(error)
        except Exception as error:  # in a thread it would be lost, and the checkpoint have holes
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"

    def write_in_background(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write the files in a thread."""
        self._thread = threading.Thread(target=self.write, args=(files,), name="checkpoint")
        self._thread.start()

    def is_written(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def explain(self, error: OSError) -> str:
        """Return why the files could not be written, in one line."""
        remedy = "make room, or lower run.keep_checkpoints"
        return disk.explain(error, self.folder, self.nbytes, remedy)
