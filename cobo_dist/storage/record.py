"""The base of all JSON objects in a run folder."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict

Number = int | float | None
"""A measured number; null stands for NaN and infinities, which JSON does not have."""


class Record(BaseModel):
    """A JSON object of a run folder. Types are strict; unknown keys are kept, for plug-ins add metrics."""

    model_config = ConfigDict(strict=True, extra="allow", populate_by_name=True)

    def to_json(self, indent: int | None = None) -> str:
        """Return the fields that were set, NaN and infinities as null."""
        # pydantic turns NaN into null; json writes the spaces by which scripts find `"round": 3`.
        content = json.loads(self.model_dump_json(exclude_unset=True, by_alias=True))
        return json.dumps(content, indent=indent)
