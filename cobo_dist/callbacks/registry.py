"""Callbacks by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module

from cobo_dist import callbacks
from cobo_dist.callbacks.callback import Callback, CallbackSection
from cobo_dist.registry import register

for _module in pkgutil.iter_modules(callbacks.__path__, f"{callbacks.__name__}."):
    if not _module.name.endswith(".registry"):
        import_module(_module.name)  # each registers its own

CALLBACKS = register.callback
"""All that are registered, those of plug-ins included."""


def build_callbacks(sections: Iterable[CallbackSection]) -> list[Callback]:
    """Return the configured callbacks.

    Raises:
        ConfigError: one refuses its settings.
    """
    return [CALLBACKS[one.name].target(**one.model_dump()) for one in sections]
