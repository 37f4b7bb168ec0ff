"""Resumes from a checkpoint: finds it, checks that it fits this run, restores its state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.checkpoint.writer import client_views
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.errors import ConfigError
from cobo_dist.plugins import COPIES_DIR
from cobo_dist.run_config import RunConfig
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage.checkpoint_format import Damaged
from cobo_dist.storage.files import MAX_CONFIG_BYTES, MAX_METRICS_BYTES, read_file
from cobo_dist.storage.reading import is_finished
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import CONFIG_FILE, METRICS_FILE, SHARED_FILE, FileDigest, Manifest
from cobo_dist.tracking.run_logger import RunLogger, digest_of
from cobo_dist.tracking.weight_snapshots import take_row
from cobo_dist.yaml_text import read_yaml

Differences = Callable[[Mapping[str, Any]], Sequence[str]]
"""Returns why this run cannot continue one of another config, which is given nested: `key old -> new`."""

_ROWS_AT_ONCE = 256
"""Rows of W in memory as vectors before they are stored as `Weights`."""

_MAX_DIFFERENCES = 5
"""Differing keys that a message names."""


@dataclass(frozen=True)
class Resumption:
    """The checkpoint that a run continues from."""

    folder: Path
    manifest: Manifest
    engine: str
    warnings: tuple[str, ...] = ()
    stopped: str = ""  # why a callback ended the run there; empty: none did

    @property
    def round(self) -> int:
        """The round after which it was written."""
        return self.manifest.round

    @property
    def run(self) -> Path:
        """The run folder it belongs to."""
        return _run_of(self.folder)


@dataclass(frozen=True)
class Done:
    """The run folder holds this run, finished."""


def find(
    run: RunConfig,
    folder: RunDir,
    differences: Differences,
    session: Session,
    placement: Placement,
    data: str,
    plugins: Mapping[str, str],
) -> Resumption | Done | None:
    """Return the newest checkpoint that is good on all ranks; None to start from the beginning.

    Args:
        run: says whether and from where to resume, and for how many rounds.
        folder: the run folder.
        differences: compares the config of a checkpoint with that of this run.
        session: connects the ranks.
        placement: which clients are on this rank.
        data: fingerprint of the task's data.
        plugins: digests of the plug-ins in use, by name.

    Raises:
        ConfigError: the same on all ranks: checkpoints of another run, or none that is good.
    """
    path, warnings = _newest_good(run, folder, session, placement)
    if path is None:
        return None
    transport, manifest = session.transport, checkpoint.read_manifest(path)
    refusal, engine, done, stopped = None, "", False, ""
    if transport.rank == 0:
        old = checkpoint.read_config(path, manifest)
        engine = old["run"]["engine"]
        refusal = _refusal(path, manifest, run.rounds, differences(old), data, plugins)
        own = _run_of(path).resolve() == folder.path.resolve()
        stopped = checkpoint.read_logger(path, manifest)[0].stopped
        is_last = manifest.round == run.rounds or bool(stopped)
        done = own and is_last and is_finished(folder.path)
    session.agree(refusal)
    record = transport.broadcast(json.dumps([engine, done, stopped]).encode())
    engine, done, stopped = json.loads(record)
    return Done() if done else Resumption(path, manifest, engine, tuple(warnings), stopped)


def _newest_good(
    run: RunConfig, folder: RunDir, session: Session, placement: Placement
) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is good on all ranks, and why newer ones are not."""
    transport = session.transport
    mode, refusal = "", None
    paths: list[str] = []
    if transport.rank == 0:  # other hosts may not share the run folder
        mode = resume_mode(run, folder, session.launch)
        try:
            paths = [str(path) for path in _candidates(folder, mode)]
        except ConfigError as error:
            refusal = str(error)
    session.agree(refusal)
    warnings: list[str] = []
    for path in map(Path, json.loads(transport.broadcast(json.dumps(paths).encode()))):
        why = _check(path, placement, transport.rank)
        answers = [record.decode() for record in transport.gather(why.encode())]
        bad = next((f"{one} (rank {k})" for k, one in enumerate(answers) if one), "")
        bad = transport.broadcast(bad.encode()).decode()
        if not bad:
            return path, warnings
        warnings.append(f"checkpoint {path.name} is not used: {bad}")
    if warnings:
        session.agree(
            f"run.resume={mode}: no checkpoint is good; {warnings[0].removeprefix('checkpoint ')}; "
            "set run.resume=never with another run.dir to start again"
        )  # the words of rank 0 count, which knows the mode
    return None, warnings


def resume_mode(run: RunConfig, folder: RunDir, launch: Launch) -> str:
    """Return `never`, `auto` or a path. A restart by the launcher counts as auto."""
    if run.resume != "never":
        return run.resume
    same_job = bool(launch.job) and folder.environment().job == launch.job
    return "auto" if launch.restarts or same_job else "never"


def refuse_unusable(
    run: RunConfig, folder: RunDir, differences: Differences, launch: Launch
) -> None:
    """Check, without writing, whether the run folder can be used; only rank 0 calls this.

    Raises:
        ConfigError: it cannot, or it holds a run that must be neither replaced nor resumed.
    """
    mode = resume_mode(run, folder, launch)
    path = _expand(mode).resolve()
    resumes = mode == "auto" or (mode != "never" and folder.path.resolve() in (path, *path.parents))
    folder.refuse_unusable(run.overwrite or resumes)
    if mode != "auto" or checkpoint.checkpoints(folder.checkpoints):
        return
    # A run that was stopped before its first checkpoint starts again, but only if it is this run.
    old = folder.path / CONFIG_FILE
    if run.overwrite or not old.exists():
        return
    try:
        changed = differences(read_yaml(read_file(old, MAX_CONFIG_BYTES).decode()))
    except (OSError, ValueError, LookupError, AttributeError):
        changed = ["its config.yaml cannot be read"]
    if changed or is_finished(folder.path):
        raise ConfigError(
            f"run.resume=auto, but run.dir={folder.path} holds "
            + (f"another run ({_some(changed)})" if changed else "a finished run")
            + " and no checkpoint; set run.overwrite=true to replace it, or name another run.dir"
        )


def _some(changed: Sequence[str]) -> str:
    more = len(changed) - _MAX_DIFFERENCES
    return ", ".join(changed[:_MAX_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def _expand(mode: str) -> Path:
    """Return the path that run.resume names."""
    try:
        return Path(mode).expanduser()
    except RuntimeError:  # ~ of an unknown user
        return Path(mode)


def _candidates(folder: RunDir, mode: str) -> list[Path]:
    """Return the checkpoints to try, newest first."""
    if mode == "never":
        return []
    if mode == "auto":
        return checkpoint.checkpoints(folder.checkpoints)
    path = _expand(mode)
    try:
        if checkpoint.round_of(path) is not None and path.is_dir():
            return [path]  # this one or none
        found = checkpoint.checkpoints(RunDir(path).checkpoints)
    except OSError as error:  # a name too long, say
        raise ConfigError(f"run.resume={mode} cannot be read: {error.strerror}") from None
    if not found:
        raise ConfigError(
            f"run.resume={mode} is neither never, auto, a checkpoint nor a run folder with "
            "checkpoints; give RUN_DIR or RUN_DIR/checkpoints/round-NNNNNNNNN"
        )
    return found


def _check(folder: Path, placement: Placement, rank: int) -> str:
    """Return what is wrong with the files that this rank reads; empty if nothing is."""
    try:
        manifest = checkpoint.read_manifest(folder)
        if (
            manifest.clients == placement.clients
        ):  # else the configs differ, which is reported later
            for client in placement.by_rank[rank].tolist():
                checkpoint.read_client(folder, manifest, client)
        if SHARED_FILE in manifest.files:
            checkpoint.read(folder, manifest, SHARED_FILE)
        if rank == 0:
            checkpoint.read_config(folder, manifest)
            state, _ = checkpoint.read_logger(folder, manifest)
            _check_metrics(_run_of(folder) / METRICS_FILE, state.metrics)
    except Damaged as error:
        return str(error)
    return ""


def _run_of(folder: Path) -> Path:
    """Return the run folder of a checkpoint."""
    return folder.parent.parent


def _check_metrics(path: Path, written: FileDigest) -> None:
    """Check that metrics.jsonl still begins with the rows that belong to a checkpoint.

    Raises:
        Damaged: it does not.
    """
    try:
        size = path.lstat().st_size
        if size < written.size:
            raise Damaged(f"{path} has {size} bytes and had {written.size} at that checkpoint")
        if written.size > MAX_METRICS_BYTES:
            raise Damaged(
                f"{path} had {written.size} bytes at that checkpoint, which no run writes"
            )
        if digest_of(path, written.size).hexdigest() != written.sha256:
            raise Damaged(f"{path} is not as it was at that checkpoint")
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None


def _refusal(
    path: Path,
    manifest: Manifest,
    rounds: int,
    changed: Sequence[str],
    data: str,
    plugins: Mapping[str, str],
) -> str | None:
    """Return why this run cannot continue from a checkpoint."""
    remedy = "give the same config, or another run.dir"
    if rounds < manifest.round:
        return (
            f"{path} is already after round {manifest.round}, and run.rounds={rounds}; "
            "raise run.rounds"
        )
    if changed:
        return f"{path} was written with another config: {_some(changed)}; {remedy}"
    if manifest.data != data:
        return f"{path} was written with other data; {remedy}"
    before, now = sorted(manifest.plugins.values()), sorted(plugins.values())
    if before != now:
        others = [name for name, digest in plugins.items() if digest not in before]
        return (
            f"{path} was written with another plug-in {', '.join(others or manifest.plugins)}; give the one "
            f"that is kept in {_run_of(path) / COPIES_DIR}, or another run.dir"
        )
    return None


# -- restoring -----------------------------------------------------------------------------------------


def reopen(folder: RunDir, found: Resumption) -> list[str]:
    """Make a run folder hold the checkpoint's rows and nothing later; only rank 0 calls this.

    Returns warnings: old checkpoints that stay where they are.
    """
    state, _ = checkpoint.read_logger(found.folder, found.manifest)
    return folder.reopen(found.run / METRICS_FILE, state.metrics.size, found.folder)


def restore(found: Resumption, clients: ClientBatch, algorithm: Algorithm) -> None:
    """Restore models, the state of optimizer and algorithm, and W.

    Raises:
        Damaged: a file changed since it was checked, or is of another run.
    """
    folder, manifest = found.folder, found.manifest
    matrices = algorithm.matrices()
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in matrices}
    for row, client in enumerate(clients.ids):
        path = folder / checkpoint.client_file(client)
        held = checkpoint.read_client(folder, manifest, client)
        for name, matrix in matrices.items():
            rows[name].append(take_row(held, matrix, path, name))
        checkpoint.fill(client_views(clients, algorithm, row), held, path)
        count = len(rows["weights"])
        if count == _ROWS_AT_ONCE or row + 1 == len(clients.ids):
            for name, matrix in matrices.items():
                matrix.put_rows(np.arange(row + 1 - count, row + 1), np.stack(rows[name]))
                rows[name] = []
    if shared := algorithm.state().shared:
        path = folder / SHARED_FILE
        content = checkpoint.read(folder, manifest, SHARED_FILE)
        checkpoint.fill(shared, checkpoint.unpack(content, path), path)


def restore_run_logger(found: Resumption, run_logger: RunLogger, symmetric: bool) -> None:
    """Restore the logs of rank 0; `symmetric`: whether W is.

    Raises:
        Damaged: a file changed since it was checked.
    """
    state, arrays = checkpoint.read_logger(found.folder, found.manifest)
    run_logger.restore(state, arrays, found.manifest.format, symmetric)
