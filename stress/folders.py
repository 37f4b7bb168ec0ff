"""Hostile run folders, as from a broken copy, another program or an attacker."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .files import sound_run

OUTSIDE, SCRATCH = "outside", "scratch"
"""Folders beside the run folder: one that nothing may change, and one that its folders may be links to."""
FILES = (
    "metrics.jsonl", "config.yaml", "env.json", "status.json", "summary.json", "W.npz", "owner/000001.json",
    "models/client_00001.safetensors",
    *(f"checkpoints/round-000000001/{name}" for name in (
        "manifest.json", "logger.json", "logger.safetensors", "config.yaml", "client_00003.safetensors",
    )),
)  # fmt: skip
NEW = (
    "status.json.1.part", "metrics.jsonl.2.part", "models.0.1.part", "models/rank_00000.2.part",
    "checkpoints/round-000000002", "checkpoints/round-000000001.2.part", "checkpoints/x.part",
    "checkpoints/round-000000001.aside", "errors/rank_00001.txt", "errors/rank_x.txt", "figures/a.part",
    "owner/000009.json", "owner/999999999999.json", "owner/000001.abc.part", "owner/x", "jobs", "note.txt",
)  # fmt: skip
FOLDERS = ("models", "checkpoints", "checkpoints/round-000000001", "errors", "tensorboard", "figures",
           "profile", "owner")  # fmt: skip
LINKABLE = ("models", "checkpoints", "errors", "tensorboard", "figures", "profile")
NUMBERS = (
    -1,
    0,
    10**9,
    2**31,
    2**63,
    10**30,
    1e308,
    "1e999",
    "NaN",
    None,
    True,
    [],
    {},
    "x" * 5000,
)
MAX_CONTENT_BYTES = 1 << 20
OLD_SECONDS = 1000.0
"""Age of all owner records: a fresh one of an unknown owner is waited for, as documented."""


def folder(rng: random.Random, place: Path) -> list[str]:
    """Change the run in `place` in one to three ways; return the arguments of a second start.

    The folder must hold a run, as `files.sound_run` writes it.
    """
    for name in (OUTSIDE, SCRATCH):
        (place / name).mkdir()
        (place / name / "foreign.txt").write_text("keep this")
    run = place / "run"
    for _ in range(rng.choice((1, 1, 2, 3))):
        # An earlier change may have removed what this one needs.
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            rng.choice(CHANGES)(rng, run)
    with suppress(OSError):
        for record in (run / "owner").iterdir():
            os.utime(record, (time.time() - OLD_SECONDS,) * 2, follow_symlinks=False)
    way = rng.choice(
        ("run.resume=auto", "run.resume=auto", "run.overwrite=true", "run.resume=never",
         "run.resume=run/checkpoints/round-000000001", "run.resume=run")
    )  # fmt: skip
    return [
        *sound_run(place),
        "run.rounds=3",
        "run.checkpoint_every=1",
        "log.tensorboard=false",
        way,
    ]


def touched(place: Path) -> str:
    """Return what was changed outside the run folder; empty if nothing was."""
    for name in (OUTSIDE, SCRATCH):
        foreign = place / name / "foreign.txt"
        try:
            if foreign.read_text() != "keep this":
                return f"{name}/foreign.txt was changed"
        except OSError:
            return f"{name}/foreign.txt was removed"
    if found := [one.name for one in (place / OUTSIDE).iterdir() if one.name != "foreign.txt"]:
        return f"{OUTSIDE} got {found}"
    return ""


# -- changes -------------------------------------------------------------------------------------------


def _some(rng: random.Random, run: Path) -> Path:
    """Return a path of the run folder, after removing what was there."""
    path = run / rng.choice((*FILES, *FILES, *NEW, *FOLDERS))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(path)
    return path


def _content(path: Path) -> bytes:
    """Return what a file of the run holds; nothing where an earlier change left a device or a huge file."""
    is_sound = path.is_file() and path.stat().st_size < MAX_CONTENT_BYTES
    return path.read_bytes() if is_sound else b""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for one in path.iterdir():
            _remove(one)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _pipe(rng: random.Random, run: Path) -> None:
    os.mkfifo(_some(rng, run))


def _socket(rng: random.Random, run: Path) -> None:
    path, here = _some(rng, run), Path.cwd()
    os.chdir(path.parent)  # a socket's path has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def _device(rng: random.Random, run: Path) -> None:
    """A device that never ends, or takes all; only root can make one."""
    with suppress(PermissionError):
        os.mknod(_some(rng, run), stat.S_IFCHR | 0o666, os.makedev(1, rng.choice((3, 5, 7))))


def _sparse(rng: random.Random, run: Path) -> None:
    with _some(rng, run).open("wb") as file:
        file.truncate(rng.choice((1 << 34, 1 << 40)))


def _link(rng: random.Random, run: Path) -> None:
    """Out, to a file, a folder, nothing, itself; or within the folder."""
    path = _some(rng, run)
    outside = run.parent / OUTSIDE
    path.symlink_to(rng.choice((outside / "foreign.txt", outside / "none", path, run / "config.yaml",
                                Path("/dev/zero"), Path("/proc/self/mem"))))  # fmt: skip


def _linked_folder(rng: random.Random, run: Path) -> None:
    """A folder of the run on another disk, or one that has no business there."""
    name = rng.choice((*LINKABLE, "owner", "config.yaml", "metrics.jsonl"))
    _remove(run / name)
    target = SCRATCH if name in LINKABLE else OUTSIDE
    (run / name).symlink_to(run.parent / target)


def _hard_link(rng: random.Random, run: Path) -> None:
    os.link(run.parent / OUTSIDE / "foreign.txt", _some(rng, run))


def _unreadable(rng: random.Random, run: Path) -> None:
    """For all but root."""
    path = run / rng.choice((*FILES, *FOLDERS[:3]))
    path.chmod(0)


def _other_kind(rng: random.Random, run: Path) -> None:
    """A folder for a file, or a file for a folder."""
    name = rng.choice((*FILES, *FOLDERS, *NEW))
    path = run / name
    was_folder = path.is_dir()
    _remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if was_folder:
        path.write_text("x")
    else:
        path.mkdir()
        (path / "x").write_text("x")


def _deep(rng: random.Random, run: Path) -> None:
    """Folders in folders, beyond the longest path that the system takes."""
    path, here = run / rng.choice(FOLDERS), Path.cwd()
    path.mkdir(parents=True, exist_ok=True)
    os.chdir(path)
    try:
        for _ in range(rng.choice((5, 50, 1500))):
            os.mkdir("x" * 9)
            os.chdir("x" * 9)
        Path("file").write_text("x")
    finally:
        os.chdir(here)


def _many(rng: random.Random, run: Path) -> None:
    path = run / rng.choice(FOLDERS)
    path.mkdir(parents=True, exist_ok=True)
    for k in range(300):
        (path / f"round-{k + 5:09d}").touch()


def _odd_names(rng: random.Random, run: Path) -> None:
    """Names that are no UTF-8, or hold line breaks and escapes of a terminal."""
    name = rng.choice(
        (b"\xff\xfe", b"a\nb", b"\x1b[31mred", b"client_\xff", b"round-00000000\xff", b"x" * 255)
    )
    path = os.fsencode(run / rng.choice((".", *FOLDERS))) + b"/" + name
    if rng.random() < 0.5:
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def _bytes(rng: random.Random, run: Path) -> None:
    """Cut, emptied, or with other bytes."""
    path = run / rng.choice(FILES)
    content = bytearray(_content(path))
    kind = rng.randrange(4)
    if kind == 0:
        content = content[: rng.randrange(len(content) + 1)]
    elif kind == 1:
        content = bytearray(
            rng.choice((b"", b"\0" * 1000, b"{", b"[" * 100_000, b"\xff\xfe\n", b"null\n"))
        )
    elif kind == 2:
        content += rng.choice((b"\0", b"{}\n", b"x" * 10**6, b'{"event": "round"}\n'))
    elif content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _numbers(rng: random.Random, run: Path) -> None:
    """JSON in which a value is of another type, or huge."""
    path = run / rng.choice([one for one in FILES if one.endswith(".json")])
    content = json.loads(_content(path))
    inside = rng.choice(
        [content, *(one for one in content.values() if isinstance(one, dict) and one)]
    )
    inside[rng.choice(sorted(inside))] = rng.choice(NUMBERS)
    path.write_text(json.dumps(content).replace('"NaN"', "NaN").replace('"1e999"', "1e999"))


def _gone(rng: random.Random, run: Path) -> None:
    _some(rng, run)


CHANGES: tuple[Callable[[random.Random, Path], None], ...] = (
    _pipe, _socket, _device, _sparse, _link, _link, _linked_folder, _hard_link, _unreadable, _other_kind,
    _deep, _many, _odd_names, _bytes, _bytes, _numbers, _numbers, _gone,
)  # fmt: skip
