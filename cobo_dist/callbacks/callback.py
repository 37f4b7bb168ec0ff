"""The base class of every callback, and of its config section."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import ValidationError

from cobo_dist.errors import ConfigError
from cobo_dist.registry import class_of, register, takes
from cobo_dist.run_config import RunConfig
from cobo_dist.settings import Section

if TYPE_CHECKING:
    from cobo_dist.results.run import Run

StopsAfter = Literal["rounds", "evaluations", "none"]


class CallbackSection(Section):
    """The settings of a callback in the config's list `callbacks`."""

    name: str = ""


class Callback:
    """Sees a run on rank 0: when it begins, after every round, and when it has ended.

    What a method raises ends the run on all ranks with one line and exit code 1; its files stay.

        class Target(cobo_dist.Callback):
            def after_round(self, r, metrics):
                return metrics.get("test/accuracy", 0.0) > 0.9

        cobo_dist.fit(callbacks=[Target()])

    A registered callback can be named in a config. Its settings are those of its class `Config`.
    """

    name: ClassVar[str] = ""  # for messages and checkpoints; empty: the class's
    Config: ClassVar[type[CallbackSection]] = CallbackSection
    stops_after: ClassVar[StopsAfter] = "rounds"
    """After what `after_round` may stop the run: any round, rounds with an evaluation, or none at all.

    With `rounds`, metrics are gathered after every round, which costs a message. Otherwise `after_round` is
    called for several rounds in a row, whenever metrics are gathered (`log.flush_every`).
    """

    def __init__(self, **settings: Any) -> None:
        """Take the settings of `Config` by their names.

        Raises:
            ConfigError: a setting that is unknown or has a wrong value.
        """
        try:
            self.config: Any = self.Config(**settings)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            why = f"{key}={first['input']!r} is refused: {first['msg']}"
            if first["type"] == "missing":
                why = f"{key} must be given"
            raise ConfigError(f"{type(self).__name__}: {why}") from None

    @property
    def title(self) -> str:
        """The name for messages and checkpoints: its own, that of the config, or the class's."""
        registered = getattr(getattr(self, "config", None), "name", "")
        return self.name or registered or type(self).__name__

    def check(self, run: RunConfig, metrics: Sequence[str]) -> None:
        """Refuse a run that it cannot serve, before training; called on every rank.

        Args:
            run: the section `run`.
            metrics: what an evaluation gives, such as loss and accuracy.

        Raises:
            ConfigError: it cannot.
        """

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned at the checkpoint; empty where a run starts.

        Called before `begin`.
        """

    def begin(self, run: Run) -> None:
        """See a run before its first round, or before the first one after a checkpoint."""

    def after_round(self, r: int, metrics: Mapping[str, float]) -> bool | None:
        """See the metrics of round r; return True to stop the run on all ranks.

        `metrics` are the numbers of the round by the names of metrics.jsonl, such as `loss` and `pairs`. If
        clients were evaluated after it, there are also the means over clients: `test/loss`,
        `validation/accuracy` and so on.
        """
        return None

    def end(self, run: Run) -> None:
        """See a run that is finished, stopped or failed; `run.summary` is None unless it is finished."""

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as JSON can hold it."""
        return {}


def need_library(module: str, title: str) -> None:
    """Check that a library is installed, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"callbacks: {title} needs the library {module}, which is not installed; pip install {module}, "
            "or drop the callback"
        )


def check_callbacks(callbacks: Any) -> list[Callback]:
    """Return callbacks given in Python as a list.

    Raises:
        ConfigError: it is no list of callbacks, or a method does not take what it is given.
    """
    if isinstance(callbacks, Callback | type | str | Mapping) or not isinstance(
        callbacks, Iterable
    ):
        raise ConfigError(
            f"callbacks={callbacks!r} is no list of callbacks; write callbacks=[EarlyStopping()]"
        )
    found = list(callbacks)
    for one in found:
        name = one.__name__ if isinstance(one, type) else repr(one)
        if isinstance(one, type) and issubclass(one, Callback):
            raise ConfigError(
                f"callbacks: {name} is a class; write {name}() for one of its objects"
            )
        if not isinstance(one, Callback):
            raise ConfigError(
                f"callbacks: {name} does not derive from cobo_dist.Callback; derive its class from it"
            )
        if why := _wrong_method(one):
            raise ConfigError(f"callbacks: {one.title}: {why}")
    return found


_CALLS: Mapping[str, tuple[Any, ...]] = {
    "check": (None, ()), "restore": ({},), "begin": (None,), "after_round": (0, {}), "end": (None,),
    "state": (),
}  # fmt: skip
"""The methods of a callback, each with as many arguments as it is called with."""


def _wrong_method(target: Callback | type[Callback]) -> str:
    """Return which method cannot be called as a run does; empty if all can."""
    for name, arguments in _CALLS.items():
        method = getattr(target, name)
        if not callable(method):
            return f"{name} is {method!r}, which is no method"
        own = isinstance(target, type) and not isinstance(
            inspect.getattr_static(target, name), staticmethod | classmethod
        )
        if why := takes(method, *((None, *arguments) if own else arguments)):
            return why
    allowed = get_args(StopsAfter)
    if target.stops_after not in allowed:
        return f"stops_after={target.stops_after!r} is none of {', '.join(allowed)}"
    return ""


def _check(target: Any) -> str:
    if why := class_of(Callback)(target) or _wrong_method(target):
        return why
    if not (isinstance(target.Config, type) and issubclass(target.Config, CallbackSection)):
        return f"{target.__name__}.Config does not derive from CallbackSection"
    return takes(target, **dict.fromkeys(target.Config.model_fields))


register.new_kind(
    "callback",
    "a class derived from cobo_dist.Callback",
    check=_check,
    section_of=lambda target: target.Config,
)
