"""One checkpoint on disk: a folder of files, sealed by a manifest that is written last.

    checkpoints/round-000000500/
        client_00000.safetensors ...   model, buffers, optimizer's memory, row of W: one file a client
        shared.safetensors             what the algorithm keeps alike on all ranks, if anything
        config.yaml                    the resolved config
        book.json book.safetensors     the coordinator's logs so far
        manifest.json                  round, data, versions; size and SHA-256 of every other file

A folder has its name only when it is complete: until then it is called `.part`. Nothing in it can execute
code when read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"
SHARED, CONFIG = "shared.safetensors", "config.yaml"
BOOK, BOOK_ARRAYS = "book.json", "book.safetensors"
_NAME = re.compile(r"round-(\d{9})")


class Damaged(Exception):
    """A checkpoint that cannot be used; the message is one line that names the file."""


@dataclass(frozen=True)
class Manifest:
    """What a complete checkpoint says of itself; `files` gives size and SHA-256 of each file."""

    round: int
    clients: int
    ranks: int
    data: str  # the task's fingerprint
    versions: dict[str, str]
    files: dict[str, tuple[int, str]]


def client_file(client: int) -> str:
    """Return the name of a client's file."""
    return f"client_{client:05d}.safetensors"


def folder_of(root: Path, r: int) -> Path:
    """Return the folder of round r's checkpoint."""
    return root / f"round-{r:09d}"


def round_of(folder: Path) -> int | None:
    """Return the round in a checkpoint folder's name; None if it is no such name."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else None


def checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders in `root`, newest first, whatever state they are in."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if round_of(path) is not None and path.is_dir()]
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


def write(path: Path, content: bytes) -> tuple[int, str]:
    """Write a file through to the disk; return the size and SHA-256 of what was to be written."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return len(content), hashlib.sha256(content).hexdigest()


def complete(draft: Path, manifest: Manifest) -> Path:
    """Seal a draft whose files are all written, and give it its name; return the folder."""
    target = draft.with_suffix("")
    write(draft / MANIFEST, _text(manifest))
    _sync(draft)
    if target.exists():  # a damaged one that this run fell back from
        remove(target)
    draft.rename(target)
    _sync(target.parent)
    return target


def remove(folder: Path) -> None:
    """Remove a checkpoint so that, whenever this is interrupted, no damaged one is left."""
    doomed = folder.with_suffix(".old.part")  # not the draft of a new one of this round
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _sync(folder: Path) -> None:
    """Put a folder's entries on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _text(manifest: Manifest) -> bytes:
    """Return the one way in which this manifest can be written; its last key seals the others."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "round": manifest.round,
        "clients": manifest.clients,
        "ranks": manifest.ranks,
        "data": manifest.data,
        "versions": manifest.versions,
        "files": {
            name: {"size": size, "sha256": digest}
            for name, (size, digest) in sorted(manifest.files.items())
        },
    }
    seal = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps(content | {"seal": seal}, indent=1) + "\n").encode()


# -- reading -----------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """Return a checkpoint's manifest.

    Raises:
        Damaged: it is missing, not as it was written, or of another format.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
        content = json.loads(text)
        files = {name: (entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
        manifest = Manifest(
            content["round"],
            content["clients"],
            content["ranks"],
            content["data"],
            content["versions"],
            files,
        )
        known = content["format"] == FORMAT
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(f"{path} is not as it was written") from None
    if not known:
        raise Damaged(f"{path} has format {content['format']!r}; this version reads {FORMAT}")
    if _text(manifest) != text or not _has_types(content):
        raise Damaged(f"{path} is not as it was written")
    if round_of(folder) != manifest.round:
        raise Damaged(f"{path} is of round {manifest.round}, which is not its folder's")
    for name in manifest.files:
        if Path(name).name != name:
            raise Damaged(f"{path} names {name!r}, which lies outside its folder")
    return manifest


def _has_types(content: Mapping[str, Any]) -> bool:
    """Return whether a manifest's entries are of the types that a run writes."""
    versions = content["versions"]
    return (
        all(type(content[name]) is int for name in ("round", "clients", "ranks"))
        and isinstance(content["data"], str)
        and isinstance(versions, dict)
        and all(isinstance(one, str) for one in versions.values())
        and all(type(one["size"]) is int for one in content["files"].values())
        and all(isinstance(one["sha256"], str) for one in content["files"].values())
    )


def read(folder: Path, manifest: Manifest, name: str) -> bytes:
    """Return a file's content, if it is what was written.

    Raises:
        Damaged: it is missing, cut short, or changed by as little as a bit.
    """
    path = folder / name
    if name not in manifest.files:
        raise Damaged(f"{path} is not in the manifest")
    size, digest = manifest.files[name]
    try:
        found = path.stat().st_size
        if found != size:
            raise Damaged(f"{path} has {found} bytes and should have {size}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
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


def fill(views: Mapping[str, Tensor], held: Mapping[str, Tensor], path: Path) -> None:
    """Write saved tensors into the places of the same names.

    Raises:
        Damaged: a name is missing or too many, or a shape or type is another one.
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
