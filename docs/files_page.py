"""Writes the tables of docs/FILES.md from the schema: python docs/files_page.py"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from cobo_dist.storage import array_schema as arrays
from cobo_dist.storage import schema
from cobo_dist.storage.array_schema import Array
from cobo_dist.storage.schema import Record

RUN_RECORDS: Mapping[str, tuple[type[Record], ...]] = {
    schema.METRICS_FILE: get_args(schema.Row),
    schema.SUMMARY_FILE: (
        schema.Summary,
        schema.ClientResult,
        schema.BytesPerClient,
        schema.PlacementSummary,
    ),
    schema.STATUS_FILE: (schema.Status,),
    schema.ENVIRONMENT_FILE: (schema.Environment, schema.InitFrom, schema.Resumed),
    schema.MODEL_FILE: (schema.ModelRecord,),
    f"{schema.MODELS_DIR}/client_NNNNN.safetensors": (schema.ModelMetadata,),
    f"{schema.OWNER_DIR}/NNNNNN.json": (schema.Owner,),
}
CHECKPOINT_RECORDS: Mapping[str, tuple[type[Record], ...]] = {
    schema.MANIFEST_FILE: (schema.Manifest, schema.FileDigest),
    schema.LOGGER_FILE: (schema.LoggerState, schema.ProgressState, schema.HealthState),
}


def page(old: str) -> str:
    """Return the page with new tables below its introduction."""
    return old.partition("\nFormat version: ")[0] + "\n" + describe()


def describe() -> str:
    """Return every file of a run folder and of a checkpoint, with its fields and arrays."""
    n = arrays.MAX_DENSE_CLIENTS
    lines = [f"Format version: {schema.FORMAT}."]
    for name, records in RUN_RECORDS.items():
        lines += ["", f"## {name}", *_records(records)]
    lines += ["", f"## {schema.WEIGHTS_FILE}"]
    lines += ["", f"W of up to {n} clients:", *_arrays(arrays.DENSE_WEIGHTS)]
    lines += ["", "W of more clients, for each snapshot after round r:"]
    lines += _arrays(arrays.LISTED_WEIGHTS)
    lines += ["", f"## {schema.PARTITION_FILE}"]
    lines += ["", "Which example is whose, with `task.name=classification` or `regression`:"]
    lines += _arrays(arrays.PARTITION)
    for name, records in CHECKPOINT_RECORDS.items():
        lines += ["", f"## {schema.CHECKPOINTS_DIR}/round-NNNNNNNNN/{name}", *_records(records)]
    folder = f"## {schema.CHECKPOINTS_DIR}/round-NNNNNNNNN/"
    lines += ["", folder + schema.LOGGER_ARRAYS_FILE]
    lines += ["", f"Up to {n} clients:", *_arrays(arrays.LOGGER_DENSE)]
    lines += ["", "More clients:", *_arrays(arrays.LOGGER_LISTED)]
    lines += ["", folder + schema.client_name(0) + ".safetensors"]
    lines += [
        "",
        "The model's parameters and buffers, the kept model (`kept.NAME`, with `run.keep`), "
        "the optimizer's state (`optimizer.NAME`) and the "
        "algorithm's state (`algorithm.NAME`), each in its own shape, and the client's row of W:",
        *_arrays((*arrays.ROW_DENSE, *arrays.ROW_LISTED)),
    ]
    return "\n".join(lines) + "\n"


def _records(records: Sequence[type[Record]]) -> Iterator[str]:
    for record in records:
        event = record.model_fields.get("event")
        title = f"`{event.default}`" if event is not None else f"`{record.__name__}`"
        about = " ".join((record.__doc__ or "").split())
        yield from ("", f"{title}: {about}", "", "| key | type | meaning |", "|---|---|---|")
        for name, spec in record.model_json_schema()["properties"].items():
            if name != "event":
                yield f"| `{name}` | {_type(spec)} | {_cell(spec.get('description', ''))} |"


def _type(spec: Mapping[str, Any]) -> str:
    if "anyOf" in spec:
        kinds = [_type(one) for one in spec["anyOf"]]
        return " or ".join(kind for kind in kinds if kind != "integer" or "number" not in kinds)
    if "$ref" in spec:
        return f"`{spec['$ref'].rsplit('/', 1)[1]}`"
    kind = str(spec.get("type", "any"))
    if kind == "array":
        inside = spec.get("prefixItems", [spec["items"]] if "items" in spec else [])
        return f"list of {', '.join(_type(one) for one in inside)}"
    if kind == "object" and isinstance(spec.get("additionalProperties"), dict):
        return f"object of {_type(spec['additionalProperties'])}"
    return kind


def _arrays(layout: Sequence[Array]) -> Iterator[str]:
    yield from ("", "| array | type | shape | meaning |", "|---|---|---|---|")
    for one in layout:
        shape = ", ".join(one.shape.split())
        yield f"| `{one.name}` | {one.dtype} | [{shape}] | {_cell(one.description)} |"


def _cell(text: str) -> str:
    """Return a text with the bars of a norm escaped, which would end a table's cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    target = Path(__file__).with_name("FILES.md")
    target.write_text(page(target.read_text(encoding="utf-8")), encoding="utf-8")
