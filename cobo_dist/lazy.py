"""torch, imported at its first use.

To import torch takes a second or more. Commands that only read a config or a run folder do not need it, so
modules that `cobo_dist.config` imports write `from cobo_dist.lazy import Tensor, nn, torch`. They use these
names in functions and annotations only: in the body of a module or class they would import torch at once.
Classes that derive from `nn.Module` have modules of their own, imported by the functions that build them.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["Tensor", "nn", "torch"]


class _LazyModule:
    """A module that is imported when one of its attributes is read."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._module: ModuleType | None = None

    def __getattr__(self, attribute: str) -> Any:
        if self._module is None:
            self._module = import_module(self._name)
        return getattr(self._module, attribute)


class _LazyClass(type):
    """A class for annotations, of which torch's tensors are instances."""

    def __instancecheck__(cls, one: object) -> bool:
        return isinstance(one, torch.Tensor)


if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch, nn = _LazyModule("torch"), _LazyModule("torch.nn")

    class Tensor(metaclass=_LazyClass):
        """`torch.Tensor`, for annotations and `isinstance`."""
