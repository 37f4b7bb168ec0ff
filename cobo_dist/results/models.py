"""The models that a run saved: those of `models/` or, while it is unfinished, of its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from cobo_dist.config import Config
from cobo_dist.errors import ConfigError
from cobo_dist.host import free_memory
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage.checkpoint_format import Damaged
from cobo_dist.storage.files import read_file
from cobo_dist.storage.reading import SchemaError, read_record
from cobo_dist.storage.schema import (
    CHECKPOINTS_DIR,
    MODEL_FILE,
    MODELS_DIR,
    ModelRecord,
    client_name,
)


def load_model(folder: Path, config: Config, client: int) -> nn.Module:
    """Return one client's model in evaluation mode.

    Raises:
        ConfigError: there is no such client or no saved model yet, or a file cannot be read.
    """
    saved = folder / MODELS_DIR / client_name(client)
    if saved.is_dir():
        return config.task.read_folder(config.model, saved).eval()
    try:
        facts = read_record(folder / MODEL_FILE, ModelRecord)
    except (OSError, SchemaError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"{folder / MODEL_FILE} cannot be read: {why}; runs of earlier versions have none, so "
            "run it again to load its models"
        ) from None
    state = read_state(folder, client)
    dtype = getattr(torch, config.run.dtype)
    model = config.task.rebuild(config.model, facts.model_dump(), client, state, dtype)
    return model.eval()


def read_state(folder: Path, client: int) -> dict[str, Tensor]:
    """Return one client's parameters and buffers by name.

    Raises:
        ConfigError: as `load_model`.
    """
    path = folder / MODELS_DIR / f"{client_name(client)}.safetensors"
    if path.is_file():
        try:
            return load(read_file(path, free_memory()))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except (SafetensorError, ValueError) as error:
            raise ConfigError(f"{path} is no safetensors file: {error}") from None
    for newest in checkpoint.checkpoints(folder / CHECKPOINTS_DIR):
        try:
            return checkpoint.read_model(newest, checkpoint.read_manifest(newest), client)
        except Damaged:  # an earlier one may be whole
            continue
    raise ConfigError(f"{path} does not exist; {_known(folder)}")


def saved_clients(folder: Path) -> list[int]:
    """Return the clients whose models are in `models/`."""
    names = (path.name.partition(".")[0] for path in (folder / MODELS_DIR).glob("client_*"))
    return sorted({int(name.removeprefix("client_")) for name in names})


def _known(folder: Path) -> str:
    """Say which models there are."""
    if clients := saved_clients(folder):
        return f"the run has models of clients {clients[0]} to {clients[-1]}"
    return "the run has neither saved models nor a good checkpoint with this client yet"
