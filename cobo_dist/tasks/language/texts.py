"""The clients' texts: NAME.txt in `data.text_dir`, or Wiki-40B as `prepare` stored it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cobo_dist.errors import ConfigError
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.language.config import LanguageConfig
from cobo_dist.tasks.language.libraries import library, reason_of

WIKI, HUB_NAME = "wiki40b", "google/wiki40b"
_MAX_BYTES_PER_TOKEN = 8  # an upper bound for these languages, so that enough text is fetched
_MARKS = re.compile(r"^_START_\w+_$")


@dataclass(frozen=True)
class ClientText:
    """One client's text and how it is cut into documents."""

    name: str
    text: str
    blocks: bool  # blank lines separate documents; otherwise each line is a document
    source: str  # for messages

    def documents(self) -> Iterator[str]:
        """Yield the documents with their separators; empty ones are left out."""
        pieces: Iterable[str] = (
            re.split(r"\n\s*\n", self.text) if self.blocks else self.text.split("\n")
        )
        end = "\n\n" if self.blocks else "\n"
        return (piece.strip() + end for piece in pieces if piece.strip())

    def digest(self) -> str:
        """Return a digest of the text and of how it is cut into documents."""
        return hashlib.sha256(f"{self.blocks} {self.text}".encode()).hexdigest()


def read_texts(config: LanguageConfig, data: DataConfig) -> list[ClientText]:
    """Return the clients' texts in the clients' order.

    Raises:
        ConfigError: no folder, no such file, two files of one client, a file without text.
    """
    if data.text_dir:
        folder, where = Path(data.text_dir).expanduser(), f"data.text_dir={data.text_dir}"
        remedy = "name the folder's files in task.languages, or another folder"
    else:
        folder, where = wiki_folder(data), f"data.root={data.root}: {WIKI}"
        remedy = (
            "run python -m cobo_dist.prepare with the same settings first, or set data.text_dir"
        )
    files = _files(folder, where) if folder.is_dir() else {}
    found = sorted(files)
    if not found:
        what = "has no .txt file" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{where} {what}; {remedy}")
    names = config.languages or tuple(found)
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"task.languages={list(names)} names {repeated[0]} twice; name each client once"
        )
    texts = []
    for name in names:
        if name not in found:
            raise ConfigError(f"{where} has no {name}.txt; it has {', '.join(found)}: {remedy}")
        blocks = config.documents == "blocks" or not data.text_dir
        text = ClientText(name, _read(files[name], where), blocks, f"{where}: {files[name].name}")
        if not text.text.strip():
            raise ConfigError(
                f"{text.source} is empty; give it text, or leave {name} out of task.languages"
            )
        texts.append(text)
    return texts


def _files(folder: Path, where: str) -> dict[str, Path]:
    """Return the text files of a folder by the names of their clients; hidden files are none."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".txt" or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in files:
            raise ConfigError(
                f"{where} has both {files[path.stem].name} and {path.name}, and a client can have only "
                "one; rename or remove one"
            )
        files[path.stem] = path
    return files


def _read(path: Path, where: str) -> str:
    """Return the text without byte order marks, which editors put before it and `cat` leaves inside."""
    try:
        return path.read_text(encoding="utf-8").replace("\ufeff", "")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"{where}: {path.name} cannot be read: {reason}; convert or replace it"
        ) from None


# -- Wiki-40B ----------------------------------------------------------------------------------------


def wiki_folder(data: DataConfig) -> Path:
    """Return the folder with the texts of Wiki-40B."""
    return Path(data.root).expanduser() / WIKI


def fetch_wiki40b(config: LanguageConfig, data: DataConfig) -> list[str]:
    """Write the missing languages' first articles into `data.root`; return the languages fetched.

    The data set is streamed until the articles hold at least `task.tokens` tokens.

    Raises:
        ConfigError: it cannot be fetched or written.
    """
    folder = wiki_folder(data)
    missing = [name for name in config.languages if not (folder / f"{name}.txt").is_file()]
    if not config.languages:
        raise ConfigError(
            "task.languages is empty; name languages of Wiki-40B, or set data.text_dir"
        )
    for name in missing:
        datasets = library("datasets")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            rows = datasets.load_dataset(HUB_NAME, name, split="train", streaming=True)
            draft = folder / f"{name}.{os.getpid()}.part"
            with draft.open("w", encoding="utf-8") as file:
                size, enough = 0, _MAX_BYTES_PER_TOKEN * config.tokens
                for article in articles(rows):
                    size += file.write(article + "\n\n")
                    if size >= enough:
                        break
            draft.replace(folder / f"{name}.txt")
        except Exception as error:  # network, hub or disk: one line for all
            raise ConfigError(
                f"Wiki-40B ({HUB_NAME}, {name}) cannot be fetched into data.root={data.root} "
                f"({reason_of(error)}); where there is no network, fetch it on another machine and copy "
                f"its folder {WIKI}"
            ) from None
    return missing


def articles(rows: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Yield the text of each article, one paragraph per line, without the data set's marks.

    A mark is a line of its own; a title follows `_START_ARTICLE_`.
    """
    for row in rows:
        raw = row["text"]
        text = raw.decode() if isinstance(raw, bytes) else str(raw)
        lines = (line.strip() for line in text.replace("_NEWLINE_", "\n").splitlines())
        if kept := [line for line in lines if line and not _MARKS.match(line)]:
            yield "\n".join(kept)
