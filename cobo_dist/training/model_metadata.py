"""The metadata of saved models: what one must know to use a model's file alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cobo_dist import __version__
from cobo_dist.storage.schema import FORMAT, ModelMetadata, ModelRecord
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.layers import layers_of


def model_metadata(task: Task) -> Callable[[int], ModelMetadata]:
    """Return a function that gives the metadata of a client's model."""
    record, section = ModelRecord(**task.model_facts()), task.model_section
    common = record.model_dump(exclude={"format", "label_maps", "label_map_of", "scale", "offset"})
    common |= {
        "format_version": FORMAT,
        "cobo_dist": __version__,
        "task": task.name,
        "metrics": list(task.metrics),
        "model": {} if section is None else section.model_dump(mode="json"),
        "layers": layers_of(task.model()),
        "scale": _shaped(record.scale, record.input_shape),
        "offset": _shaped(record.offset, record.input_shape),
    }

    def of_client(client: int) -> ModelMetadata:
        maps = record.label_maps
        return ModelMetadata(
            client=client,
            client_name=task.names[client] if task.names else "",
            label_map=maps[record.label_map_of[client]] if maps else [],
            **common,
        )

    return of_client


def _shaped(factor: float | list[float], shape: list[int]) -> object:
    """Return one number, or one for each feature as nested lists in the shape of an input."""
    return np.reshape(factor, shape).tolist() if isinstance(factor, list) else factor
