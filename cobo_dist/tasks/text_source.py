"""Source `text`: a table with a column of texts, which become token ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.registry import register
from cobo_dist.settings import Text
from cobo_dist.tasks.sources import Labeled, SourceSection
from cobo_dist.tasks.table_columns import complete, refuse_missing
from cobo_dist.tasks.text_format import BYTES, TOKENIZER_FILES, text_format

if TYPE_CHECKING:
    import pandas as pd


@register.source("text")
class TextSource(SourceSection):
    """A table, CSV or Parquet: one column has texts, one has labels, one may have the clients."""

    file: Text = Field("", description="path of the file, FILE.csv or FILE.parquet")
    text: Text = Field("text", description="column with the text of each example")
    label: Text = Field("label", description="column with its label")
    client: Text = Field(
        "client", description="column with the name of its client, if the table has it"
    )
    length: int = Field(
        128,
        ge=1,
        le=1_000_000,
        description="tokens of a text in use: it is cut there, or filled up",
    )
    tokenizer: Text = Field(
        BYTES,
        description="`bytes` of UTF-8, or a tokenizer of transformers: a local folder, or a name on the "
        "hub that prepare fetches",
    )

    def contradiction(self) -> str:
        """Return one line about columns that are named twice."""
        if len({self.text, self.label, self.client}) < 3:
            return (
                f"task.source.text={self.text}, task.source.label={self.label} and task.source.client="
                f"{self.client} name a column twice; name each its own"
            )
        return ""

    def fetch(self) -> Iterator[str]:
        """Fetch the tokenizer into the hub's cache, if it is from there."""
        if self.tokenizer != BYTES:
            from cobo_dist.tasks.language.base import find

            found = find(
                self.tokenizer,
                "task.source.tokenizer",
                fetch=True,
                files=[*TOKENIZER_FILES, "config.json"],
            )
            yield f"found       tokenizer {self.tokenizer} in {found}"

    def read(self) -> Labeled:
        """Return the rows, texts as token ids int64 [N, length]."""
        import pandas as pd

        key, path = f"task.source.file={self.file}", Path(self.file).expanduser()
        if path.suffix not in (".csv", ".parquet") or not path.is_file():
            raise ConfigError(
                f"{key} is no file FILE.csv or FILE.parquet; give the path of a table"
            )
        columns = (self.text, self.label, self.client)
        try:
            if path.suffix == ".csv":
                # Only an empty field is missing: "NA" and "null" are texts.
                table = pd.read_csv(
                    path, dtype={self.text: str, self.client: str}, keep_default_na=False,
                    na_values={name: [""] for name in columns}, low_memory=False,
                )  # fmt: skip
            else:
                table = pd.read_parquet(path)
        except ImportError as error:
            raise ConfigError(
                f"{key} needs the package pyarrow ({error}); pip install pyarrow, or save the table as csv"
            ) from None
        except (ValueError, OSError, MemoryError) as error:
            raise ConfigError(
                f"{key} cannot be read: {words_of(error)[:300]}; write it anew"
            ) from None
        return self._labeled(table, key)

    def _labeled(self, table: pd.DataFrame, key: str) -> Labeled:
        names = [str(name) for name in table.columns]
        for which in ("text", "label", *(["client"] if self.client != "client" else [])):
            if getattr(self, which) not in names:
                raise ConfigError(
                    f"task.source.{which}={getattr(self, which)} is no column of {key}, which has "
                    f"{', '.join(names[:8])}; name one of them"
                )
        if not len(table):
            raise ConfigError(f"{key} has no rows; give a table with examples")
        refuse_missing(table[self.text], self.text, key, "task.source.text")
        texts = table[self.text].tolist()
        if wrong := [one for one in texts if not isinstance(one, str)]:
            raise ConfigError(
                f"{key}: column {self.text} (task.source.text) holds {wrong[0]!r:.40}, which is no text; "
                "convert it, or use task.source.name=parquet for numbers"
            )
        empty = [row for row, one in enumerate(texts) if not one.strip()]
        if empty:
            raise ConfigError(
                f"{key}: column {self.text} (task.source.text) is blank in {len(empty)} of {len(texts)} "
                f"rows, first in row {empty[0] + 1}; fill or drop them"
            )
        client = None
        if self.client in names:
            client = complete(table[self.client], self.client, key, "task.source.client")
        form = text_format(self.tokenizer, self.length)
        unused = [name for name in names if name not in (self.text, self.label, self.client)]
        notices = (f"{key}: {', '.join(unused)} is not used",) if unused else ()
        return Labeled(
            form.encode(texts),
            complete(table[self.label], self.label, key, "task.source.label"),
            key,
            client=client,
            notices=notices,
            text=form,
        )
