"""What all config sections have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of config keys: unknown keys, wrong types, NaN and infinities are refused.

    `text_key`: the key that is meant where a text stands for the whole section, as in `clock=virtual`;
    empty: the section is always a group.
    """

    text_key: ClassVar[str] = ""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False,
        protected_namespaces=(),  # before 2.10 Pydantic keeps names such as `model_kind` for itself
    )  # fmt: skip

    def contradiction(self) -> str:
        """Return one line about keys that do not go together; empty if all do."""
        return ""

    @property
    def needs_rounds(self) -> tuple[str, ...]:
        """Why a run cannot go on with another `run.rounds`, by the keys whose effect depends on it."""
        return ()

    def flat(self) -> dict[str, Any]:
        """Return all keys as YAML has them, dotted: `{"run.seed": 0, ...}`."""
        return flatten(self.model_dump(mode="json", by_alias=True))


def flatten(nested: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return nested keys as dotted ones.

    >>> flatten({"run": {"seed": 0}})
    {'run.seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= (
            flatten(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value}
        )
    return flat


def _fit_for_files(value: Any) -> Any:
    if isinstance(value, str) and (
        "\0" in value or any("\ud800" <= one <= "\udfff" for one in value)
    ):
        raise ValueError("it holds a character that no file name can have")
    return value


Text = Annotated[str, BeforeValidator(_fit_for_files)]
"""Text that names something outside, such as a folder. A config takes it as it is written."""


def as_tuple(value: Any) -> Any:
    """Take a list for a tuple, as YAML writes it; for `BeforeValidator`."""
    return tuple(value) if isinstance(value, list) else value


def as_texts(value: Any) -> Any:
    """Take one text for a list of one; for `BeforeValidator`."""
    return as_tuple([value] if isinstance(value, str) else value)


Texts = Annotated[tuple[Text, ...], BeforeValidator(as_texts)]
"""Several texts. A config takes one as well."""

Width = Annotated[int, Field(ge=1, le=1_000_000)]
Widths = Annotated[tuple[Width, ...], BeforeValidator(as_tuple)]
