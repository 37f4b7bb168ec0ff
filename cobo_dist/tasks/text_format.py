"""How text becomes token ids [length], and is told apart from what fills up short texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError

if TYPE_CHECKING:
    from cobo_dist.tasks.language.tokens import LibraryTokenizer

BYTES = "bytes"
TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken")
"""Patterns of the files of tokenizers."""
_BYTE_VALUES = 256


@dataclass(frozen=True)
class TextFormat:
    """Text as ids 0 .. vocabulary - 1, cut to `length`; the last id fills up short texts.

    `tokenizer`: `bytes` of UTF-8, or the folder of a tokenizer of transformers.
    """

    tokenizer: str
    length: int
    vocabulary: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the ids of texts, int64 [N, length].

        Raises:
            ConfigError: the tokenizer cannot be loaded.
        """
        ids = np.full((len(texts), self.length), self.vocabulary - 1, dtype=np.int64)
        for row, found in zip(ids, self._tokens(texts), strict=True):
            row[: len(found)] = found[: self.length]
        return ids

    def _tokens(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        if self.tokenizer == BYTES:
            # A character has at least one byte, so no more of them are needed.
            return [list(text[: self.length].encode()) for text in texts]
        tokenizer = _library(self.tokenizer).tokenizer
        how = {"truncation": True, "max_length": self.length, "verbose": False}
        found: list[list[int]] = tokenizer(list(texts), **how)["input_ids"]
        return found


def text_format(tokenizer: str, length: int) -> TextFormat:
    """Return the format of a tokenizer.

    Raises:
        ConfigError: it cannot be loaded.
    """
    values = _BYTE_VALUES if tokenizer == BYTES else _library(tokenizer).size
    return TextFormat(tokenizer, length, values + 1)


@cache
def _library(name: str) -> LibraryTokenizer:
    from cobo_dist.tasks.language.base import find
    from cobo_dist.tasks.language.libraries import library, reason_of
    from cobo_dist.tasks.language.tokens import LibraryTokenizer

    key = "task.source.tokenizer"
    folder = find(name, key)
    if not any(one for pattern in TOKENIZER_FILES for one in folder.glob(pattern)):
        raise ConfigError(
            f"{key}={name} has no files of a tokenizer, such as tokenizer.json; name a folder that "
            f"save_pretrained of a tokenizer wrote, or set {key}={BYTES}"
        )
    transformers = library("transformers", f"{key}={name}")
    try:
        found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer = LibraryTokenizer(found)
        # Some versions return an empty tokenizer for a folder without one.
        if not tokenizer.encode(["some text"])[0]:
            raise ValueError("it has no vocabulary")
    except Exception as error:  # damaged files, unknown kinds: one line for all
        raise ConfigError(
            f"{key}={name} cannot be loaded: {reason_of(error)}; name a folder with a tokenizer of "
            f"transformers, or set {key}={BYTES}"
        ) from None
    return tokenizer
