"""How reports show methods: no two look alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.markers import MarkerStyle

from cobo_dist.algorithms.registry import ALGORITHMS

BUILT_IN = [
    entry.target
    for entry in ALGORITHMS.values()
    if entry.target.__module__.startswith("cobo_dist.")
]


@pytest.mark.parametrize(
    "look",
    [
        lambda one: (one.color, one.marker),
        lambda one: one.color,
        lambda one: one.place,
        lambda one: one.title,
    ],
    ids=["color and marker", "color", "place", "title"],
)
def test_no_two_methods_share_a_look(look: Callable[[Any], object]) -> None:
    by_look: dict[object, list[str]] = {}
    for one in BUILT_IN:
        by_look.setdefault(look(one), []).append(one.__name__)
    assert len(BUILT_IN) > 30
    assert {key: names for key, names in by_look.items() if len(names) > 1} == {}


@pytest.mark.parametrize("one", BUILT_IN, ids=lambda one: one.__name__)
def test_a_look_can_be_drawn(one: Any) -> None:
    assert re.fullmatch("#[0-9a-f]{6}", one.color)
    assert one.marker in MarkerStyle.markers
