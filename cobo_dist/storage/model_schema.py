"""model.json, and the metadata of every file in models/: what one must know to use a saved model."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from cobo_dist.storage.record import Record


class ModelFacts(Record):
    """What model.json and the metadata of a model have in common."""

    input_shape: list[int] = Field(
        [], description="shape of one input as the network takes it; images: channels first"
    )
    images: bool = Field(
        False, description="inputs are images of bytes [H, W, C], as the data has them"
    )
    classes: int = Field(0, description="outputs of the network; 0: it has no classes")
    outputs: int = Field(
        0, description="numbers that a regression's network predicts; 0: it has classes"
    )
    target_scale: list[float] = Field(
        [], description="for each output: the network predicts scale * target + offset"
    )
    target_offset: list[float] = Field([], description="see `target_scale`")


class ModelRecord(ModelFacts):
    """What rebuilds a model without the data, beside `config.yaml` and the client's file."""

    format: int = Field(1, description="version of the run folder")
    scale: float | list[float] = Field(
        1.0, description="the network takes scale * input + offset; a list has one for each feature"
    )
    offset: float | list[float] = Field(0.0, description="see `scale`")
    label_names: list[str] = Field(
        [], description="what the data call each label; empty: nothing but its number"
    )
    label_maps: list[list[int]] = Field(
        [],
        description="for each label of the data, the number of the output, -1: none; each map once",
    )
    label_map_of: list[int] = Field([], description="for each client, which of `label_maps` it has")


class ModelMetadata(ModelFacts):
    """The metadata of `client_NNNNN.safetensors`, so that this file alone is enough. Each value is JSON."""

    format_version: int = Field(description="version of the run folder")
    cobo_dist: str = Field(description="version of the program")
    task: str = Field(description="`task.name`")
    metrics: list[str] = Field(description="what an evaluation gives, the one that judges last")
    model: dict[str, Any] = Field(
        description="the section `model` of the config; empty: the task has its own model"
    )
    layers: list[tuple[str, dict[str, Any]]] | None = Field(
        None,
        description="name in torch.nn and arguments of each layer of a `torch.nn.Sequential`; null: the "
        "network is no such sequence",
    )
    client: int = Field(description="number of the client")
    client_name: str = Field("", description="its name, if it has one")
    scale: Any = Field(
        1.0, description="the network takes scale * input + offset; one number, or `input_shape`"
    )
    offset: Any = Field(0.0, description="see `scale`")
    label_names: list[str] = Field([], description="what the data call each label")
    label_map: list[int] = Field(
        [], description="for each label of the data, the number of this client's output, -1: none"
    )

    def to_text(self) -> dict[str, str]:
        """Return the metadata as safetensors stores it, text by text."""
        return {name: json.dumps(value) for name, value in self.model_dump(mode="json").items()}
