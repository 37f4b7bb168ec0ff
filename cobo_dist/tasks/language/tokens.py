"""From text to tokens: tokenizers, and token streams that are cached as files and read as memory maps.

Shapes: T tokens of a client, D documents.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.tasks.language.config import LanguageConfig
from cobo_dist.tasks.language.texts import ClientText

_DOCUMENTS_PER_CALL = 256  # of a tokenizer
_FULL = 0.99
"""Share of `task.tokens` from which a text ends at the first document that does not fit."""
_MAX_SKIPPED_IN_A_ROW = 1000
"""With so many documents skipped one after the other, a text ends at the next that does not fit."""


class Tokenizer(Protocol):
    """The part of a tokenizer that the task uses."""

    size: int  # token ids are below it
    first: int  # the token that begins a text
    digest: str

    def has_special(self, text: str) -> bool:
        """Return whether the text holds the name of a special token."""

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Return the tokens of each text, without special tokens: their names are text like any other."""


class ByteTokenizer:
    """Tokens are bytes of UTF-8; 256 begins a text."""

    size, first, digest = 257, 256, "bytes"

    def has_special(self, text: str) -> bool:
        """Return False: no text has the token 256."""
        return False

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Return the bytes of each text."""
        return [list(text.encode()) for text in texts]


class LibraryTokenizer:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.size = max(vocabulary.values(), default=-1) + 1
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
        self.first = int(next(end for end in ends if end is not None))
        rules = getattr(tokenizer, "backend_tokenizer", None)
        content = rules.to_str() if rules is not None else json.dumps(vocabulary, sort_keys=True)
        self.digest = hashlib.sha256(f"{self.first} {content}".encode()).hexdigest()
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {*tokenizer.all_special_tokens, *(str(one) for one in added if one.special)}
        # Matches after the first character of a special token's name.
        places = [f"(?<={re.escape(one[0])})(?={re.escape(one[1:])})" for one in special if one[1:]]
        self._inside_special = re.compile("|".join(sorted(places)) or r"(?!)")

    def has_special(self, text: str) -> bool:
        """Return whether the text holds the name of a special token."""
        return self._inside_special.search(text) is not None

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Return the tokens of each text, without special tokens.

        The name of a special token is cut in two and each part encoded by itself: libraries differ in
        whether and how they can be told that it is text.
        """
        parts = [self._inside_special.split(text) for text in texts]
        flat = [part for some in parts for part in some]
        found = iter(self.tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
        return [[token for _ in some for token in next(found)] for some in parts]


@dataclass(frozen=True)
class Stream:
    """One client's documents as one sequence of tokens."""

    tokens: NDArray[np.integer[Any]]  # [T], a memory map
    ends_d2: NDArray[np.int64]  # [D, 2]: where each document ends, in tokens and in bytes of text
    skipped: int  # documents that were longer than what was left of the limit
    rest_left_out: bool  # so many did not fit that the rest of the text was not looked at
    digest: str

    @property
    def notice(self) -> str:
        """What of the text is not in use; empty if all of it is, but for the end of a full stream."""
        if not self.skipped:
            return ""
        one = self.skipped == 1
        text = f"{self.skipped:,} document{'' if one else 's'} did not fit into task.tokens and "
        text += "was skipped" if one else "were skipped"
        return text + (", and the rest of the text is left out" if self.rest_left_out else "")


@dataclass(frozen=True)
class Span:
    """A split: tokens `begin` .. `end` - 1 of a client's stream, and their bytes of text."""

    begin: int
    end: int
    bytes: int

    def __len__(self) -> int:
        return self.end - self.begin


def stream_of(text: ClientText, tokenizer: Tokenizer, limit: int, cache: Path) -> Stream:
    """Return a client's stream of at most `limit` tokens, whole documents only; tokenize it only once.

    `cache` keeps it under a digest of text, tokenizer and limit. Several ranks may write it at once: each
    writes its own temporary file and renames it, and all have the same content.

    Raises:
        ConfigError: the cache cannot be written.
    """
    name = f"{text.digest()} {tokenizer.digest} {limit}"
    if tokenizer.has_special(text.text):  # earlier versions took their names for special tokens
        name += " special tokens as text"
    digest = hashlib.sha256(name.encode()).hexdigest()[:24]
    files = cache / f"{text.name}-{digest}.npy", cache / f"{text.name}-{digest}.ends.npy"
    if (cached := _read_cache(files)) is None:
        arrays = _tokenize(text, tokenizer, limit)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            for file, array in zip(files, arrays, strict=True):
                draft = file.with_name(f"{file.name}.{socket.gethostname()}.{os.getpid()}.part")
                with draft.open("wb") as opened:
                    np.save(opened, array)
                draft.replace(file)
        except OSError as error:
            raise ConfigError(
                f"data.root is where token streams are kept, and {cache} cannot be written "
                f"({error.strerror}); set data.root to a folder that can"
            ) from None
        cached = _read_cache(files) or arrays
    tokens, ends = cached
    skipped = int(ends[:, 2].sum())
    # Earlier versions ended a text where this one skips a document: other data, so another digest.
    digest += f" {skipped} skipped" if skipped else ""
    rest_left_out = bool(ends[-1, 2] > _MAX_SKIPPED_IN_A_ROW)
    return Stream(tokens, ends[1:, :2], skipped, rest_left_out, digest)


def _read_cache(files: tuple[Path, Path]) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
    """Return the cached arrays of an earlier run, if they are complete and of this version."""
    try:
        tokens, ends = (np.load(file, mmap_mode="r") for file in files)
    except (OSError, ValueError, EOFError):
        return None
    whole = ends.ndim == 2 and ends.shape[1] == 3 and len(ends) and len(tokens) == ends[-1, 0]
    if not whole or ends[:, 2].max() > _MAX_SKIPPED_IN_A_ROW + 1:
        return None
    return tokens, np.asarray(ends)


def _tokenize(
    text: ClientText, tokenizer: Tokenizer, limit: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the tokens of the documents that fit, and rows [D + 1, 3], the first one before all documents.

    A row says where a document ends, in tokens and in bytes, and how many are skipped after it.
    """
    dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.uint32
    pieces, ends, count, size = [], [[0, 0, 0]], 0, 0
    for document, tokens in _encoded(text, tokenizer):
        if count + len(tokens) > limit:
            if count >= _FULL * limit:
                break
            ends[-1][2] += 1
            if ends[-1][2] > _MAX_SKIPPED_IN_A_ROW:
                break
            continue
        count, size = count + len(tokens), size + len(document.encode())
        pieces.append(np.asarray(tokens, dtype=dtype))
        ends.append([count, size, 0])
    empty = np.empty(0, dtype=dtype)
    return np.concatenate([empty, *pieces]), np.array(ends, dtype=np.int64)


def _encoded(text: ClientText, tokenizer: Tokenizer) -> Iterator[tuple[str, Sequence[int]]]:
    documents = text.documents()
    while some := list(islice(documents, _DOCUMENTS_PER_CALL)):
        yield from zip(some, tokenizer.encode(some), strict=True)


def split(stream: Stream, config: LanguageConfig, source: str) -> dict[str, Span]:
    """Split a stream into training, validation and test, in this order, at ends of documents.

    Raises:
        ConfigError: no training window, or no validation or test tokens.
    """
    if config.validation_fraction + config.test_fraction >= 1:
        raise ConfigError(
            f"task.validation_fraction={config.validation_fraction:g} and task.test_fraction="
            f"{config.test_fraction:g} leave nothing to train on; lower them below 1 in all"
        )
    count = len(stream.tokens)
    ends = np.concatenate([np.zeros((1, 2), dtype=np.int64), stream.ends_d2])
    shares = 1.0 - config.test_fraction - config.validation_fraction, 1.0 - config.test_fraction
    # The last document that ends within its share. Without validation data both cuts are the same.
    cuts = [int(np.searchsorted(ends[:, 0], round(share * count), "right")) - 1 for share in shares]
    bounds = [0, max(cuts[0], 0), max(cuts[1], 0), len(ends) - 1]
    spans = {}
    for number, name in enumerate(("train", "validation", "test")):
        (begin, first), (end, last) = ends[bounds[number]], ends[bounds[number + 1]]
        spans[name] = Span(int(begin), int(end), int(last - first))
    # Validation data are read in whole windows when weights are learned from them.
    validated = config.context if config.validation_fraction else 0
    least = {"train": config.context, "validation": validated, "test": 1}
    for name, span in spans.items():
        if len(span) < least[name]:
            skipped = stream.notice and (
                f"; {stream.notice}: raise task.tokens, or put line breaks into them"
            )
            raise ConfigError(
                f"{source} is too short: of its {count} tokens in {len(stream.ends_d2)} documents "
                f"(task.tokens={config.tokens}), {len(span)} are for {name}, which needs "
                f"{least[name]} (task.context={config.context}); give more text, or lower "
                f"task.context or the fractions{skipped}"
            )
    return spans
