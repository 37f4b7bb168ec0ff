"""Malformed data files, as from an interrupted copy, another program or an attacker."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .texts import TINY

DTYPES = (
    "f2",
    "f4",
    "f8",
    ">f8",
    "i1",
    "u1",
    "i8",
    "u8",
    "c16",
    "?",
    "U3",
    "S3",
    "M8[s]",
    "O",
    "f4,i8",
    "V5",
)
NAMES = (
    "../../evil",
    "/etc/evil",
    "",
    ".",
    "..",
    "x" * 5000,
    "a\0b",
    "a/b",
    "__metadata__",
    "ä",
    "con\n",
)


# -- npz -----------------------------------------------------------------------------------------------


def problem(rng: random.Random, folder: Path) -> list[str]:
    """Write a problem.npz with something wrong; return the arguments."""
    n, d = 5, 4
    sound = {
        "centers": np.arange(float(n * d)).reshape(n, d),
        "curvature": np.ones(n),
        "start": np.zeros(d),
        "clusters": np.array([0, 0, 1, 1, 1]),
    }
    _write_npz(folder / "fuzz.npz", sound, rng)
    return ["task.name=quadratic", "task.file=fuzz.npz", *TINY]


def images(rng: random.Random, folder: Path) -> list[str]:
    """Write an npz of images with something wrong; return the arguments."""
    sound = {
        "x_train": np.zeros((80, 8, 8, 3), np.uint8),
        "y_train": np.arange(80) % 4,
        "x_test": np.zeros((20, 8, 8, 3), np.uint8),
        "y_test": np.arange(20) % 4,
    }
    _write_npz(folder / "fuzz.npz", sound, rng)
    return [
        "task.name=cross_device", "task.cluster_sizes=[2, 2]", "data.file=fuzz.npz", "model.name=resnet9",
        "model.width=2", "data.batch_size=4", *TINY,
    ]  # fmt: skip


def _write_npz(path: Path, sound: dict[str, np.ndarray], rng: random.Random) -> None:
    """Write the arrays, one of them unsound, or the file as a whole."""
    name = rng.choice(sorted(sound))
    array, kind = sound[name], rng.randrange(10)
    members = {key: _npy(value) for key, value in sound.items()}
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[rng.choice(NAMES[:6] + NAMES[7:])] = members.pop(name)
    elif kind == 2:
        members[name] = _npy(_other_dtype(array, rng.choice(DTYPES)))
    elif kind == 3:
        shapes = [
            (),
            (0,),
            (1,),
            (7,),
            (array.size,),
            (1, *array.shape),
            array.shape[::-1],
            (0, *array.shape[1:]),
        ]
        members[name] = _npy(np.resize(array, rng.choice(shapes)))
    elif kind == 4:
        flat = array.astype(float).ravel()
        flat[rng.randrange(flat.size)] = rng.choice(
            (np.nan, np.inf, -np.inf, 1e308, -1e308, -1.0, 0.5)
        )
        members[name] = _npy(flat.reshape(array.shape).astype(array.dtype))
    elif kind == 5:
        members[name] = _with_header(members[name], rng)
    elif kind == 6:
        members[name] = rng.choice(
            (b"", b"\x93NUMPY", rng.randbytes(60), pickle.dumps(_Evil()), b"text")
        )
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", rng.choice((0, 8, 14))) as archive:
        for key, value in members.items():
            archive.writestr(f"{key}.npy", value)
    content = bytearray(whole.getvalue())
    if kind == 7:
        del content[rng.randrange(len(content)) :]
    elif kind == 8:
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 9:
        content = bytearray(
            rng.choice((members[name], b"", b"PK\x05\x06" + bytes(18), rng.randbytes(500)))
        )
    path.write_bytes(content)


def _npy(array: np.ndarray) -> bytes:
    whole = io.BytesIO()
    np.save(whole, array, allow_pickle=True)
    return whole.getvalue()


class _Evil:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("EXECUTED", "w")


def _other_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "O":
        return np.full(array.shape, _Evil(), object)
    try:
        return array.astype(dtype)
    except (TypeError, ValueError):
        return np.zeros(array.shape, dtype)


def _with_header(content: bytes, rng: random.Random) -> bytes:
    """Return an array's bytes with a wrong header."""
    shape = rng.choice(
        ("(10**12,)", "(1000000000000,)", "(-1,)", "(1,)*99", "'x'", "(2**63,)", "(4.0,)", "()")
    )
    dtype = rng.choice(
        ("'<f8'", "'O'", "'<f8,<i8'", "'|V9999999999'", "5", "'evil'", "__import__('os')")
    )
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    if rng.random() < 0.3:
        header = (
            rng.choice((b"[", b"{}", b"{" * 500, b"1", b"lambda: 0", b"\xff\xfe")) + header[:20]
        )
    length = rng.choice((len(header), len(header), 65535, 0))
    return (
        b"\x93NUMPY"
        + bytes((rng.choice((1, 2, 3, 9)), 0))
        + struct.pack("<H", length)
        + header
        + content[80:]
    )


# -- texts and language models ---------------------------------------------------------------------------

_LANGUAGE = [
    "task.name=language", "task.languages=[]", "task.context=8", "task.tokens=2000", "data.batch_size=2",
    "data.text_dir=texts", "data.root=.",
]  # fmt: skip


def texts(rng: random.Random, folder: Path) -> list[str]:
    """Write text files, one of them malformed; return the arguments."""
    _write_texts(folder, rng)
    path = folder / "texts" / "b.txt"
    kind = rng.randrange(8)
    if kind == 0:
        path.write_bytes(rng.randbytes(rng.randint(0, 3000)))
    elif kind == 1:
        path.write_text(
            rng.choice(("", " \n\n \t", "x", "\n" * 500, "\ufeff", "\0" * 900, "\r" * 900))
        )
    elif kind == 2:
        path.write_text("x" * rng.choice((7, 60, 100_000)))
    elif kind == 3:
        path.unlink()
        path.mkdir()
    elif kind == 4:
        path.write_bytes("straße\n".encode(rng.choice(("utf-16", "latin-1", "utf-32"))) * 90)
    elif kind == 5:
        path.unlink()
        path.symlink_to(rng.choice(("nowhere.txt", "b.txt", "/dev/null")))
    elif kind == 6:
        path.write_text("\ud7ff \u2028 \x85 \x0b \U0010ffff\n" * 300)
    else:
        path.rename(path.with_name(f"{'b' * 240}.txt"))
    return [*_LANGUAGE, "model.name=tiny-gpt2", "model.width=8", "model.layers=1", *TINY]


def _write_texts(folder: Path, rng: random.Random) -> None:
    (folder / "texts").mkdir(exist_ok=True)
    for name in "ab":
        lines = (" ".join(rng.choices(("one", "two", "three"), k=8)) for _ in range(60))
        (folder / "texts" / f"{name}.txt").write_text("\n".join(lines))


def gguf(rng: random.Random, folder: Path) -> list[str]:
    """Write a malformed or truncated GGUF file; return the arguments."""
    _write_texts(folder, rng)

    def text(value: str) -> bytes:
        return struct.pack("<Q", rng.choice((len(value),) * 8 + (2**40, 2**63, 0))) + value.encode()

    def number(value: int) -> int:
        return rng.choice((value,) * 8 + (0, 2**31, 2**63 - 1))

    head = rng.choice((b"GGUF", b"GGUF", b"GGUF", b"FUGG", b"GGML")) + struct.pack(
        "<I", rng.choice((2, 3, 3, 3, 99))
    )
    body = head + struct.pack("<QQ", number(1), number(3))
    for key, value in (
        ("general.architecture", rng.choice(("gpt2", "llama", "evil"))),
        ("general.name", "x"),
    ):
        body += text(key) + struct.pack("<I", rng.choice((8, 8, 8, 9, 77))) + text(value)
    body += text("gpt2.block_count") + struct.pack("<II", 4, number(1) % 2**32)
    body += text(rng.choice(("token_embd.weight", *NAMES[:6]))) + struct.pack(
        "<IQQIQ",
        rng.choice((2, 2, 2, 0, 2**31)),
        number(8),
        number(257),
        rng.choice((0, 1, 2, 999)),
        number(0),
    )
    content = bytearray(body + bytes(rng.choice((0, 100, 20_000))))
    if rng.random() < 0.5:
        del content[rng.randrange(len(content)) :]
    if rng.random() < 0.2:
        content = bytearray(rng.randbytes(200))
    (folder / "fuzz.gguf").write_bytes(content)
    return [*_LANGUAGE, "model.name=gguf", "model.gguf=fuzz.gguf", "model.tokenizer=bytes", *TINY]


def safetensors(rng: random.Random, folder: Path) -> list[str]:
    """Write a model folder with malformed weights or malicious names; return the arguments."""
    _write_texts(folder, rng)
    path = folder / "model"
    path.mkdir(exist_ok=True)
    config = {
        "model_type": rng.choice(("gpt2", "gpt2", "gpt2", "../evil", "bert", 5)),
        "architectures": ["GPT2LMHeadModel"], "n_layer": rng.choice((1, 1, 1, -1, 0, "one", 10**9)),
        "n_head": 1, "n_embd": rng.choice((4, 4, 4, 0, -4, 3.5)),
        "n_positions": 16, "vocab_size": rng.choice((257, 257, 257, 1, 10**12)),
        "auto_map": {"AutoModelForCausalLM": "evil.Evil"},
    }  # fmt: skip
    if config["model_type"] == "bert":  # whose own sizes take longer than a hang
        config |= {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "intermediate_size": 8,
        }
    text = json.dumps(config)
    if rng.random() < 0.2:
        text = text[: rng.randrange(len(text))]
    (path / "config.json").write_text(text)
    # Code that must never run: nothing from a model's folder is executed.
    (path / "evil.py").write_text("import pathlib; pathlib.Path('EXECUTED').touch()\nEvil = int\n")
    (path / "model.safetensors").write_bytes(_safetensors(rng))
    return [*_LANGUAGE, "model.name=causal-lm", "model.path=model", "model.tokenizer=bytes", *TINY]


def _safetensors(rng: random.Random) -> bytes:
    """Return a safetensors file with a wrong header or malicious names."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    header: dict[str, Any] = {"transformer.wte.weight": entry}
    kind = rng.randrange(8)
    if kind == 0:
        header[rng.choice(NAMES)] = {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]}
    elif kind == 1:
        entry["shape"] = rng.choice(([2**62, 4], [-1], [], [2, 3], "x", [0]))
    elif kind == 2:
        entry["data_offsets"] = rng.choice(([0, 2**60], [8, 0], [-1, 15], [0], [0, 15], "x"))
    elif kind == 3:
        entry["dtype"] = rng.choice(("F99", "", "BOOL", "I64", 5))
    elif kind == 4:
        header["__metadata__"] = rng.choice(({"a": 1}, [], "x", {"format": "tf"}, {"format": "pt"}))
    text = json.dumps(header).encode()
    if kind == 5:
        text = rng.choice((b"", b"{", b"[]", b"{" * 3000, b"\xff\xfe", text[:-1]))
    length = rng.choice((len(text),) * 4 + (2**62, 0, 10**9)) if kind == 6 else len(text)
    content = struct.pack("<Q", length) + text + bytes(20)
    return content[: rng.randrange(len(content))] if kind == 7 else content


# -- checkpoints -----------------------------------------------------------------------------------------


def checkpoint(rng: random.Random, folder: Path) -> list[str]:
    """Change a valid checkpoint and update its digests, as an attacker could; return the arguments.

    The folder must hold a run, as `sound_run` writes it.
    """
    (newest,) = (folder / "run" / "checkpoints").glob("round-*")
    manifest = json.loads((newest / "manifest.json").read_text())
    names = sorted(manifest["files"])
    name, kind = rng.choice(names), rng.randrange(6)
    path = newest / name
    content: bytes | None = None
    if kind == 0:
        content = _safetensors(rng)
    elif kind == 1 and name.endswith(".json"):
        content = rng.choice(
            (b"", b"[]", b"{}", b"5", b'{"metrics": 5}', b'{"metrics": {}}', b"{" * 5000, b"\xff")
        )
    elif kind == 2 and name.endswith(".yaml"):
        content = rng.choice(
            (
                b"",
                b"[]",
                b"x: [",
                b"!!python/name:os.system",
                b"run: 5",
                b"\xff",
                b"run: {}",
                b"[" * 5000,
            )
        )
    elif kind == 3:
        manifest["files"][rng.choice((*NAMES, "/etc/passwd", "../../config.yaml"))] = manifest[
            "files"
        ].pop(name)
    elif kind == 4:
        key = rng.choice(sorted(manifest))
        manifest[key] = rng.choice((None, 5, -1, "x", [], {}, {"a": 1}, 10**30, 1.5, True, 2))
    elif kind == 5:
        run_logger = json.loads((newest / "logger.json").read_text())
        inside = rng.choice(
            (run_logger, run_logger["metrics"], run_logger["progress"], run_logger["health"])
        )
        inside[rng.choice(sorted(inside))] = rng.choice(
            (None, 5, -1, "x", [], {}, 10**30, {"a": 5})
        )
        path, name, content = newest / "logger.json", "logger.json", json.dumps(run_logger).encode()
    if content is not None:
        path.write_bytes(content)
        manifest["files"][name] = {
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    del manifest["sha256"]
    if isinstance(manifest.get("files"), dict):
        manifest["files"] = dict(sorted(manifest["files"].items()))
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    (newest / "manifest.json").write_text(
        json.dumps(manifest | {"sha256": digest}, indent=1) + "\n"
    )
    return [*sound_run(folder), "run.rounds=2", "run.resume=auto"]


def sound_run(folder: Path) -> list[str]:
    """Return the arguments of the one-round run whose checkpoint `checkpoint` changes."""
    n, d = 5, 4
    np.savez(
        folder / "sound.npz",
        centers=np.arange(float(n * d)).reshape(n, d),
        curvature=np.ones(n),
        start=np.zeros(d),
    )
    return [
        "task.name=quadratic",
        "task.file=sound.npz",
        "run.dir=run",
        "run.threads=1",
        "optimizer.lr=0.01",
        *TINY,
    ]


KINDS: dict[str, Callable[[random.Random, Path], list[str]]] = {
    "problem": problem,
    "images": images,
    "texts": texts,
    "gguf": gguf,
    "safetensors": safetensors,
    "checkpoint": checkpoint,
}
