"""Starts a run from the models that another run left (`run.init_from`)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.session import Session
from cobo_dist.errors import ConfigError
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage.checkpoint_format import Damaged
from cobo_dist.storage.reading import is_finished
from cobo_dist.storage.schema import CHECKPOINTS_DIR, MODELS_DIR, InitFrom, client_name
from cobo_dist.tasks.base import Task


def start_from(source: str, task: Task, clients: ClientBatch, session: Session) -> InitFrom:
    """Fill the clients' models from a run folder or checkpoint; return what it was. All ranks call this.

    A finished run gives the models that it left, another one those of its newest checkpoint.

    Raises:
        ConfigError: the same on all ranks: there are no such models, or they have other shapes.
    """
    refusal, digest, folder = None, hashlib.sha256(), Path(source).expanduser()
    try:
        folder = _find(source, task.clients)
        for row, client in enumerate(clients.ids):
            state = _read(folder, task, client)
            _fill(clients, row, state, f"run.init_from={source}: client {client}'s")
            for name in sorted(state):
                digest.update(name.encode() + state[name].numpy().tobytes())
    except ConfigError as error:
        refusal = str(error)
    except Damaged as error:
        refusal = f"run.init_from={source}: {error}; name another checkpoint"
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        refusal = f"run.init_from={source} cannot be read: {why}; give a run folder or a checkpoint"
    session.agree(refusal)
    clients.loaded = True
    digests = [one.decode() for one in session.transport.gather(digest.hexdigest().encode())]
    whole = hashlib.sha256("".join(digests).encode()).hexdigest()
    return InitFrom(path=os.fspath(folder.absolute()), sha256=whole)


def _find(source: str, clients: int) -> Path:
    """Return the folder `models` of a finished run, or a checkpoint.

    Raises:
        ConfigError: it is neither a run nor a checkpoint, or has another number of clients.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"run.init_from={source} is no folder; give a run folder or a checkpoint in it"
        )
    folder = path
    if checkpoint.round_of(path) is None:
        saved = checkpoint.checkpoints(path / CHECKPOINTS_DIR)
        if is_finished(path) or not saved:
            folder = path / MODELS_DIR
        else:
            folder = saved[0]
    found = sum(1 for _ in folder.glob("client_*")) if folder.is_dir() else 0
    if not found:
        raise ConfigError(
            f"run.init_from={source} has neither saved models nor a checkpoint; give the folder of a "
            "run that has"
        )
    if found != clients:
        raise ConfigError(
            f"run.init_from={source} has models of {found} clients, and this run has {clients}; start "
            "from a run with as many"
        )
    return folder


def _read(folder: Path, task: Task, client: int) -> dict[str, Tensor]:
    """Return a client's parameters and buffers by name."""
    if checkpoint.round_of(folder) is None:
        return task.load(folder / client_name(client))
    return checkpoint.read_model(folder, checkpoint.read_manifest(folder), client)


def _fill(clients: ClientBatch, row: int, state: Mapping[str, Tensor], whose: str) -> None:
    """Copy a state into a client's model.

    Raises:
        ConfigError: names or shapes differ; the line has both shapes.
    """
    views = clients.model_views(row)
    for name in [*sorted(views.keys() & state.keys()), *sorted(views.keys() ^ state.keys())]:
        saved, here = (
            str(list(held[name].shape)) if name in held else "missing" for held in (state, views)
        )
        if saved != here:
            raise ConfigError(
                f"{whose} {name} is {saved}, and this run's is {here}; start from a run with the same "
                "task and model"
            )
    for name, view in views.items():
        view.copy_(state[name])
