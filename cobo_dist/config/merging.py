"""How a file, arguments, a preset and default names become one config of nested keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cobo_dist.config.messages import is_group, must_be_group, name_at
from cobo_dist.config.schema import QUICKSTART, VARIANTS, groups, text_sections, variants_in
from cobo_dist.errors import ConfigError
from cobo_dist.registry import Variant, register


def spread_texts(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested keys with a group for each text that stands for a section."""
    inside = text_sections()
    return {
        key: {inside[key]: value} if isinstance(value, str) and key in inside else value
        for key, value in nested.items()
    }


def with_preset(
    below: dict[str, Any], above: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add the keys of the named preset below those beside which it is named; `above` names it last.

    Raises:
        ConfigError: the algorithm has no such preset.
    """
    name = above.get("preset", below.get("preset", ""))
    if not name or not isinstance(name, str):  # what is no text is refused as any other key
        return below, above
    algorithm = (
        name_at(above, "algorithm") or name_at(below, "algorithm") or QUICKSTART["algorithm"]
    )
    known = {one: register.algorithm[one].target.Config.presets for one in register.algorithm}
    presets = known.get(algorithm, {})
    if name not in presets:
        having = [one for one, presets in known.items() if presets]
        raise ConfigError(
            f"preset={name} is none of {', '.join(presets)}, the presets of algorithm.name={algorithm}"
            if presets
            else f"preset={name}, but algorithm.name={algorithm} has no presets; drop it or set "
            f"algorithm.name={' or '.join(having)}"
        )
    keys = presets[name]
    return (below, merge(keys, above)) if "preset" in above else (merge(keys, below), above)


def merge(below: Mapping[str, Any], above: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return the nested keys of both; `above` wins."""
    merged = dict(below)
    for key, value in above.items():
        held = merged.get(key)
        if isinstance(value, dict) and held is not None:
            if isinstance(held, dict):
                value = merge(held, value, f"{at}{key}.")
            elif is_group(f"{at}{key}"):
                raise ConfigError(must_be_group(f"{at}{key}", held))
        merged[key] = value
    return merged


def drop_other_variant(group: str, below: dict[str, Any], above: dict[str, Any]) -> None:
    """Let `algorithm.name=local` on the command line win over a file written for cobo.

    Drop the keys of the file that only the old name has.
    """
    variant, name, base = groups()[group], name_at(above, group), below
    if name not in variant.names or name == name_at(below, group):
        return
    for step in group.split("."):
        inside = base.get(step)
        if not isinstance(inside, dict):
            return
        base = inside
    fields = variant.section(name).model_fields
    known = {key for other in variant.names for key in variant.section(other).model_fields}
    for key in [key for key in base if key in known and key not in fields]:
        del base[key]


def name_variants(merged: dict[str, Any]) -> None:
    """Fill in names that are not given: the quickstart's, and for the paper's tasks the paper's models."""
    for section in ("task", "algorithm", "model"):
        if isinstance(given := merged.setdefault(section, {}), dict):
            default = QUICKSTART[section]
            task = merged["task"].get("name") if isinstance(merged["task"], dict) else None
            if section == "model" and isinstance(task, str) and task in VARIANTS["task"]:
                default = VARIANTS["task"][task].target.default_model
            given.setdefault("name", default)
            _name_nested(given, groups()[section])


def _name_nested(given: dict[str, Any], variant: Variant) -> None:
    """Fill in the names of the groups in a section, where the section has any."""
    if not isinstance(given["name"], str) or given["name"] not in variant.names:
        return
    for key, inside in variants_in(variant.section(given["name"])).items():
        if isinstance(group := given.setdefault(key, {}), dict):
            given[key] = group = {"name": inside.default, **group}
            _name_nested(group, inside)
