"""cobo_dist: CoBo, collaborative learning via bilevel optimization, on torch.distributed.

    run = cobo_dist.fit("config.yaml", {"run.rounds": 500})
    run = cobo_dist.open_run("runs/digits-cobo-s0")

`import cobo_dist` imports nothing else; each name of the API is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cobo_dist.api import fit as fit
    from cobo_dist.callbacks.callback import Callback as Callback
    from cobo_dist.config import Config as Config
    from cobo_dist.errors import ConfigError as ConfigError
    from cobo_dist.errors import RunFailure as RunFailure
    from cobo_dist.results.run import Run as Run
    from cobo_dist.results.run import open_run as open_run

__version__ = "0.1.0"

_MODULE_OF = {
    "Callback": "cobo_dist.callbacks.callback",
    "Config": "cobo_dist.config",
    "ConfigError": "cobo_dist.errors",
    "Run": "cobo_dist.results.run",
    "RunFailure": "cobo_dist.errors",
    "fit": "cobo_dist.api",
    "open_run": "cobo_dist.results.run",
}
"""The public API, and the module that has each name."""

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'cobo_dist' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
