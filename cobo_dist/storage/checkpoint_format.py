"""One checkpoint on disk: a folder of files, and a manifest that is written last.

    checkpoints/round-000000500/
        client_00000.safetensors ...      model, buffers, optimizer's state, row of W: one file a client
        shared.safetensors                the algorithm's state that is the same on all ranks, if any
        config.yaml                       the resolved config
        logger.json logger.safetensors    the state of rank 0's logs
        manifest.json                     round, data, versions; size and SHA-256 of every other file

While a checkpoint is written, its folder is `round-NNNNNNNNN.EPOCH.part`; EPOCH is that of the run
folder's owner. Reading a checkpoint cannot execute code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.torch import load, save
from torch import Tensor

from cobo_dist.host import free_memory
from cobo_dist.storage import schema
from cobo_dist.storage.array_schema import check_logger_arrays
from cobo_dist.storage.files import read_file, remove_tree
from cobo_dist.storage.reading import (
    SchemaError,
    check_format,
    file_on_disk,
    upgrade_client,
    upgrade_logger,
    upgrade_manifest,
)
from cobo_dist.storage.schema import FileDigest, LoggerState, Manifest
from cobo_dist.yaml_text import read_yaml

_NAME = re.compile(r"round-(\d{9})")


class Damaged(Exception):
    """A checkpoint that cannot be used; the message is one line that names the file."""


def client_file(client: int) -> str:
    """Return the name of a client's file."""
    return f"{schema.client_name(client)}.safetensors"


def folder_of(root: Path, r: int) -> Path:
    """Return the folder of round r's checkpoint."""
    return root / f"round-{r:09d}"


def draft_of(root: Path, r: int, epoch: int) -> Path:
    """Return the folder in which the owner of that epoch writes round r's checkpoint."""
    return root / f"round-{r:09d}.{epoch}.part"


def unused_name(folder: Path, suffix: str) -> Path:
    """Return `round-NNNNNNNNN` with the suffix; with a number before it if that is taken."""
    stem = folder.with_name(folder.name.partition(".")[0])
    name, k = stem.with_name(f"{stem.name}{suffix}"), 0
    while os.path.lexists(name):
        k += 1
        name = stem.with_name(f"{stem.name}.{k}{suffix}")
    return name


def round_of(folder: Path) -> int | None:
    """Return the round in a checkpoint folder's name; None if it is no such name."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else None


def checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders in `root`, newest first, whatever state they are in."""
    if not root.is_dir():
        return []
    found = [
        path
        for path in root.iterdir()
        if round_of(path) is not None and path.is_dir() and not path.is_symlink()
    ]
    return sorted(found, key=lambda path: path.name, reverse=True)


# -- writing -----------------------------------------------------------------------------------------


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file; the tensors may change afterwards."""
    plain = {
        # Views of one row share its memory, which the format refuses.
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return save(plain)


def write(path: Path, content: bytes) -> FileDigest:
    """Write a file through to the disk; return the size and SHA-256 of the content."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileDigest(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def complete(draft: Path, manifest: Manifest, check_owner: Callable[[], None]) -> Path:
    """Write the manifest into a draft whose other files are complete, and rename it; return the folder.

    Raises:
        TakenOver: by `check_owner`: another run took the run folder, so the draft stays one.
        OSError: the file system refused.
    """
    target = folder_of(draft.parent, manifest.round)
    content = manifest.model_dump(exclude={"sha256"})
    content["files"] = dict(sorted(content["files"].items()))
    write(draft / schema.MANIFEST_FILE, _render(content | {"sha256": _digest(content)}))
    _sync(draft)
    check_owner()
    try:
        draft.rename(target)
    except OSError:
        check_owner()  # a new owner removes drafts
        if not target.exists():
            raise
        # A damaged one that this run did not use, and that could not be set aside before.
        target.rename(unused_name(target, ".aside"))
        draft.rename(target)
    _sync(target.parent)
    return target


def remove(folder: Path) -> None:
    """Remove a checkpoint; if this is interrupted, what is left does not look like a checkpoint."""
    doomed = unused_name(folder, ".old.part")  # not the draft of a new one of this round
    folder.rename(doomed)
    remove_tree(doomed)


def _sync(folder: Path) -> None:
    """Write a folder's entries through to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _render(content: Mapping[str, Any]) -> bytes:
    """Return a manifest's text, to the byte."""
    return (json.dumps(content, indent=1) + "\n").encode()


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's other keys."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# -- reading -----------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """Return a checkpoint's manifest.

    Raises:
        Damaged: it is missing, not as it was written, or of a later format.
    """
    path = folder / schema.MANIFEST_FILE
    damaged = Damaged(f"{path} is not as it was written")
    try:
        text = read_file(path)
        content = json.loads(text)
        check_format(content["format"])
        if _render(content) != text:
            raise damaged
        content = upgrade_manifest(content)
        digest = content.pop("sha256")
        if digest != _digest(content):
            raise damaged
        manifest = Manifest.model_validate(content | {"sha256": digest})
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise Damaged(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if round_of(folder) != manifest.round:
        raise Damaged(f"{path} is of round {manifest.round}, which is not its folder's")
    for name in manifest.files:
        if Path(name).name != name:
            raise Damaged(f"{path} names {name!r}, which lies outside its folder")
    return manifest


def read(folder: Path, manifest: Manifest, name: str) -> bytes:
    """Return a file's content, if it is what was written.

    Raises:
        Damaged: it is missing, cut short, or changed by as little as a bit.
    """
    name = file_on_disk(name, manifest.format)
    path = folder / name
    if name not in manifest.files:
        raise Damaged(f"{path} is not in the manifest")
    written = manifest.files[name]
    try:
        size = path.stat().st_size
        if size != written.size:
            raise Damaged(f"{path} has {size} bytes and should have {written.size}")
        content = read_file(path, free_memory())
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != written.sha256:
        raise Damaged(f"{path} is not as it was written (its SHA-256 differs)")
    return content


def unpack(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file's bytes.

    Raises:
        Damaged: it is no such file.
    """
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"{path} is no safetensors file: {error}") from None


def read_client(folder: Path, manifest: Manifest, client: int) -> dict[str, Tensor]:
    """Return the tensors of one client.

    Raises:
        Damaged: the file is not as it was written.
    """
    name = client_file(client)
    tensors = unpack(read(folder, manifest, name), folder / name)
    return upgrade_client(tensors, manifest.format)


def read_model(folder: Path, manifest: Manifest, client: int) -> dict[str, Tensor]:
    """Return one client's parameters and buffers by name.

    Raises:
        Damaged: as `read_client`.
    """
    held = read_client(folder, manifest, client)
    parts = (name.partition(".") for name in held)
    return {name: held[f"{kind}.{name}"] for kind, _, name in parts if kind in ("model", "buffer")}


def read_logger(
    folder: Path, manifest: Manifest
) -> tuple[LoggerState, dict[str, NDArray[np.generic]]]:
    """Return the state of rank 0's logs, and its arrays.

    Raises:
        Damaged: a file of it is not as it was written, or does not follow the schema.
    """
    name = schema.LOGGER_FILE
    try:
        content = json.loads(read(folder, manifest, name))
        state = LoggerState.model_validate(upgrade_logger(content, manifest.format))
        if len(state.last_evaluation) != manifest.clients:
            raise SchemaError(f"{len(state.last_evaluation)} clients, not {manifest.clients}")
        name = schema.LOGGER_ARRAYS_FILE
        arrays = load_arrays(read(folder, manifest, name))
        check_logger_arrays(arrays, manifest.clients)
    except (ValidationError, SafetensorError, RecursionError, ValueError, LookupError, TypeError):
        raise Damaged(f"{folder / name} is not what a run writes") from None
    return state, arrays


def read_config(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the config that a checkpoint was written with.

    Raises:
        Damaged: it is not as it was written, or is no config.
    """
    try:
        content = read_yaml(read(folder, manifest, schema.CONFIG_FILE).decode())
        if isinstance(content["run"]["engine"], str):
            return dict(content)
    except (ValueError, LookupError, TypeError):
        pass
    raise Damaged(f"{folder / schema.CONFIG_FILE} is not what a run writes")


def fill(views: Mapping[str, Tensor], held: Mapping[str, Tensor], path: Path) -> None:
    """Copy saved tensors into those of the same names.

    Raises:
        Damaged: the names, a shape or a type differ.
    """
    if missing := sorted(views.keys() ^ held.keys()):
        raise Damaged(f"{path}: {missing[0]} is only in the file or only in the run")
    for name, view in views.items():
        saved = held[name]
        if saved.shape != view.shape or saved.dtype != view.dtype:
            raise Damaged(
                f"{path}: {name} is {saved.dtype} {tuple(saved.shape)}, and the run needs "
                f"{view.dtype} {tuple(view.shape)}"
            )
        view.copy_(saved)
