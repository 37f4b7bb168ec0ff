"""Going on from a checkpoint: which one, whether it fits this run, and putting its state in place."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from cobo_dist.algorithms.base import Algorithm
from cobo_dist.checkpoint.contents import read_book, read_config
from cobo_dist.checkpoint.writer import client_views
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.config import Config
from cobo_dist.errors import ConfigError
from cobo_dist.settings import flatten
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage.checkpoint_format import Damaged, Manifest
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tracking.run_logger import METRICS, RunLogger, digest_of
from cobo_dist.tracking.weight_snapshots import take_row

MAY_CHANGE = {
    "run.dir", "run.overwrite", "run.resume", "run.rounds", "run.eval_every", "run.eval_splits",
    "run.log_weights_every", "run.checkpoint_every", "run.keep_checkpoints", "run.checkpoint_writing",
    "run.on_failed_checkpoint", "run.device", "run.threads", "run.engine", "data.root", "data.file",
    "data.text_dir", "data.eval_batch_size", "data.eval_examples", "task.file", "comm.backend",
    "comm.timeout", "comm.connect_timeout", "comm.check", "comm.placement", "comm.placement_every",
}  # fmt: skip
"""Keys that a resumed run may set anew, beside those of `log` and the number of ranks: they do not change
what is learned. Whether the data behind a new path are the same, their fingerprint says."""

_ROWS = 256
"""Rows of W that are read before they are put away."""

_NEEDS_LENGTH = {
    "algorithm.fedavg_share": "fine-tuned FedAvg turns local after a share of them",
    "optimizer.warmup": "optimizer.schedule=one_cycle spreads over them",
    "algorithm.sampling.switch_fraction": "algorithm.sampling.name=mixed switches after a share of them",
}


@dataclass(frozen=True)
class Resumption:
    """The checkpoint that a run goes on from."""

    folder: Path
    manifest: Manifest
    engine: str
    warnings: tuple[str, ...] = ()

    @property
    def round(self) -> int:
        """The round it was taken after."""
        return self.manifest.round

    @property
    def run(self) -> Path:
        """The run folder it belongs to."""
        return self.folder.parent.parent


@dataclass(frozen=True)
class Done:
    """The run folder holds this very run, finished."""


def find(
    config: Config, session: Session, placement: Placement, data: str
) -> Resumption | Done | None:
    """Return the newest checkpoint that is good on all ranks; None to start from the beginning.

    Raises:
        ConfigError: the same on all ranks: checkpoints of another run, or none that is good.
    """
    transport = session.transport
    mode, refusal = "", None
    folders: list[str] = []
    if transport.rank == 0:  # which sees the run folder for sure
        mode = resume_mode(config, session.launch)
        try:
            folders = [str(path) for path in _candidates(config, mode)]
        except ConfigError as error:
            refusal = str(error)
    session.agree(refusal)
    mode, folders = json.loads(transport.broadcast(json.dumps([mode, folders]).encode()))
    warnings: list[str] = []
    for folder in map(Path, folders):
        why = _check(folder, placement, transport.rank)
        verdicts = [record.decode() for record in transport.gather(why.encode())]
        bad = next((f"{one} (rank {k})" for k, one in enumerate(verdicts) if one), "")
        bad = transport.broadcast(bad.encode()).decode()
        if not bad:
            return _accept(folder, config, session, data, warnings)
        warnings.append(f"checkpoint {folder.name} is not used: {bad}")
    if folders:
        session.agree(
            f"run.resume={mode}: no checkpoint is good; {warnings[0].removeprefix('checkpoint ')}; "
            "set run.resume=never with another run.dir to start again"
        )
    return None


def resume_mode(config: Config, launch: Launch) -> str:
    """Return `never`, `auto` or a path; a launcher that starts a run again means auto."""
    mode = config.run.resume
    return "auto" if mode == "never" and (launch.restarts or _began_here(config, launch)) else mode


def _began_here(config: Config, launch: Launch) -> bool:
    """Return whether the run in the run folder was started by the same torchrun."""
    known = RunDir(config.run_dir).read_json("env.json") if launch.job else {}
    return bool(launch.job) and known.get("job") == launch.job


def refuse_unusable(config: Config, launch: Launch) -> None:
    """Look, without writing, whether the run folder can be used; only rank 0 calls this.

    Raises:
        ConfigError: it cannot, or it holds a run that must neither be replaced nor gone on with.
    """
    folder, mode = RunDir(config.run_dir), resume_mode(config, launch)
    goes_on = mode == "auto" or (
        mode != "never"
        and config.run_dir.resolve() in (_place(mode).resolve(), *_place(mode).resolve().parents)
    )
    folder.refuse_unusable(config.run.overwrite or goes_on)
    if mode != "auto" or checkpoint.checkpoints(folder.checkpoints):
        return
    # Stopped before its first checkpoint, a run starts again; but only if it is this run.
    old = folder.path / "config.yaml"
    if config.run.overwrite or not old.exists():
        return
    try:
        changed = _changed(
            _completed(yaml.safe_load(old.read_text(encoding="utf-8"))), config.flat()
        )
    except (OSError, ValueError, yaml.YAMLError, LookupError, AttributeError, RecursionError):
        changed = ["its config.yaml cannot be read"]
    if changed or _is_finished(folder.path):
        raise ConfigError(
            f"run.resume=auto, but run.dir={folder.path} holds "
            + (f"another run ({', '.join(changed[:5])})" if changed else "a finished run")
            + " and no checkpoint; set run.overwrite=true to replace it, or name another run.dir"
        )


def _place(mode: str) -> Path:
    """Return the path that run.resume names."""
    try:
        return Path(mode).expanduser()
    except RuntimeError:  # nobody's home
        return Path(mode)


def _candidates(config: Config, mode: str) -> list[Path]:
    """Return the checkpoints to try, newest first."""
    if mode == "never":
        return []
    if mode == "auto":
        return checkpoint.checkpoints(config.run_dir / "checkpoints")
    path = _place(mode)
    try:
        if checkpoint.round_of(path) is not None and path.is_dir():
            return [path]  # this very one, or none
        found = checkpoint.checkpoints(path / "checkpoints")
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
        if manifest.clients == placement.clients:  # else the config says why not
            for client in placement.by_rank[rank].tolist():
                name = checkpoint.client_file(client)
                checkpoint.unpack(checkpoint.read(folder, manifest, name), folder / name)
        if checkpoint.SHARED in manifest.files:
            checkpoint.read(folder, manifest, checkpoint.SHARED)
        if rank == 0:
            read_config(folder, manifest)
            content, _ = read_book(folder, manifest)
            _check_metrics(folder.parent.parent / METRICS, content["metrics"])
    except Damaged as error:
        return str(error)
    return ""


def _check_metrics(path: Path, held: Mapping[str, Any]) -> None:
    """Look whether a log still begins with the rows that a checkpoint counts on.

    Raises:
        Damaged: it does not.
    """
    try:
        size = path.stat().st_size
        if size < held["size"]:
            raise Damaged(f"{path} has {size} bytes and had {held['size']} at that checkpoint")
        if digest_of(path, held["size"]).hexdigest() != held["sha256"]:
            raise Damaged(f"{path} is not as it was at that checkpoint")
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None


def _accept(
    folder: Path, config: Config, session: Session, data: str, warnings: list[str]
) -> Resumption | Done:
    """Hold a good checkpoint against this run's config and data."""
    manifest = checkpoint.read_manifest(folder)
    refusal, engine = None, ""
    if session.transport.rank == 0:
        old = read_config(folder, manifest)
        engine = old["run"]["engine"]
        refusal = _differences(folder, old, config, manifest, data)
    session.agree(refusal)
    engine = session.transport.broadcast(engine.encode()).decode()
    own = folder.parent.parent.resolve() == config.run_dir.resolve()
    done = own and manifest.round == config.run.rounds and _is_finished(config.run_dir)
    if session.transport.broadcast(json.dumps(done).encode()) == b"true":
        return Done()
    return Resumption(folder, manifest, engine, tuple(warnings))


def _is_finished(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "status.json").read_text())["exit_code"] == 0)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _differences(
    folder: Path, old: Mapping[str, Any], config: Config, manifest: Manifest, data: str
) -> str | None:
    """Return why a checkpoint is another run's, or of a run that cannot be continued like this."""
    before, now = _completed(old), config.flat()
    changed = _changed(before, now)
    remedy = "give the same config, or another run.dir"
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        return f"{folder} was written with another config: {', '.join(changed[:5])}{more}; {remedy}"
    if manifest.data != data:
        return f"{folder} was written with other data; {remedy}"
    if config.run.rounds < manifest.round:
        return (
            f"{folder} is already after round {manifest.round}, and run.rounds={config.run.rounds}; "
            "raise run.rounds"
        )
    if before.get("run.rounds") != config.run.rounds:
        for key, why in _NEEDS_LENGTH.items():
            if _applies(key, now):
                return (
                    f"run.rounds={config.run.rounds} differs from the {before.get('run.rounds')} that "
                    f"{folder} was written with, and {why}; {remedy}"
                )
    return None


def _completed(old: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an earlier config, flat; a key that its version did not have yet has its default."""
    known = copy.deepcopy(dict(old))
    for _ in range(2):
        try:
            return {**flatten(old), **Config.model_validate(known).flat()}
        except (
            ValidationError
        ) as error:  # keys that this version does not have: they are differences
            for one in error.errors():
                if one["type"] == "extra_forbidden":
                    _remove(known, one["loc"])
    return flatten(old)


def _remove(nested: Any, location: Sequence[int | str]) -> None:
    """Remove a key of nested dictionaries; names of variants in its location are no keys."""
    *path, key = location
    for step in path:
        nested = nested.get(step, nested)
    nested.pop(key, None)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which configs differ, where that makes another run: `key old -> new`."""
    return [
        f"{key} {before.get(key, 'unset')} -> {now.get(key, 'unset')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in MAY_CHANGE and not key.startswith("log.")
    ]


def _applies(key: str, now: Mapping[str, Any]) -> bool:
    """Return whether a key that reads rounds as a whole is in force."""
    if key == "optimizer.warmup":
        return bool(now["optimizer.schedule"] == "one_cycle")
    if key.startswith("algorithm.sampling"):
        return now.get("algorithm.sampling.name") == "mixed"
    return key in now


# -- putting it in place -------------------------------------------------------------------------------


def reopen(folder: RunDir, found: Resumption) -> None:
    """Make a run folder hold the checkpoint's rows and nothing later; only rank 0 calls this."""
    content, _ = read_book(found.folder, found.manifest)
    folder.reopen(found.run / METRICS, content["metrics"]["size"], found.folder)


def restore(found: Resumption, clients: ClientBatch, algorithm: Algorithm) -> None:
    """Fill models, memories and W with the checkpoint's.

    Raises:
        Damaged: a file changed since it was looked at, or is of another run.
    """
    folder, manifest = found.folder, found.manifest
    weights, rows = algorithm.weights, []
    for row, client in enumerate(clients.ids):
        name = checkpoint.client_file(client)
        held = checkpoint.unpack(checkpoint.read(folder, manifest, name), folder / name)
        rows.append(take_row(held, weights, folder / name).numpy())
        checkpoint.fill(client_views(clients, algorithm, row), held, folder / name)
        if len(rows) == _ROWS or row + 1 == len(clients.ids):
            weights.put_rows(np.arange(row + 1 - len(rows), row + 1), np.stack(rows))
            rows = []
    if shared := algorithm.state().shared:
        path = folder / checkpoint.SHARED
        content = checkpoint.read(folder, manifest, checkpoint.SHARED)
        checkpoint.fill(shared, checkpoint.unpack(content, path), path)


def restore_run_logger(found: Resumption, run_logger: RunLogger) -> None:
    """Fill the coordinator's book with the checkpoint's.

    Raises:
        Damaged: a file changed since it was looked at.
    """
    run_logger.restore(*read_book(found.folder, found.manifest))
