"""The whole config as a class: the sections that each package owns, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny
from pydantic.fields import FieldInfo

from cobo_dist.algorithms.algorithm import AlgorithmSection
from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.callbacks.callback import CallbackSection
from cobo_dist.callbacks.registry import CALLBACKS
from cobo_dist.clients.local_config import LocalWorkConfig, ParticipationConfig
from cobo_dist.clients.optimizer_config import OptimizerConfig
from cobo_dist.comm.config import CommConfig
from cobo_dist.plugins import Plugin, used_plugins
from cobo_dist.registry import Kind, Variant, register, variant_of
from cobo_dist.run_config import LogConfig, RunConfig
from cobo_dist.scenario.clock import ClockConfig
from cobo_dist.scenario.membership import MembershipConfig
from cobo_dist.settings import Section, Texts, as_tuple
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.registry import MODELS, TASKS
from cobo_dist.tasks.sections import ModelSection, TaskSection
from cobo_dist.yaml_text import Dumper

VARIANTS: Mapping[str, Kind] = {"task": TASKS, "model": MODELS, "algorithm": ALGORITHMS}
"""The sections whose other keys depend on `name`, and what is registered for them."""

QUICKSTART = {"task": "digits", "model": "mlp", "algorithm": "cobo"}
"""The names where none is given."""

_TASK, _MODEL, _ALGORITHM = (Variant(one, QUICKSTART[one]) for one in VARIANTS)
CALLBACK = Variant("callback", default="")  # of each in the list; it has no default


def _texts(nested: Any) -> Iterator[str]:
    """Yield all texts in nested dictionaries and lists."""
    if isinstance(nested, str):
        yield nested
    elif isinstance(nested, Mapping):
        for one in nested.values():
            yield from _texts(one)
    elif isinstance(nested, list | tuple):
        for one in nested:
            yield from _texts(one)


class Config(Section):
    """The whole config. The defaults are the quickstart.

    >>> Config().algorithm.name, str(Config().run_dir)
    ('cobo', 'runs/digits-cobo-s0')
    """

    plugins: Texts = Field(
        (),
        description="modules, or paths of Python files, that register algorithms, tasks, models, ... of "
        "your own (docs/EXTENDING.md)",
    )
    preset: str = Field(
        "",
        description="keys that suit each other, by name, from the algorithm: cobo has paper, published and "
        "robust; any other key given with it wins",
    )
    run: RunConfig = RunConfig()
    task: Annotated[SerializeAsAny[TaskSection], _TASK] = _TASK.field()
    model: Annotated[SerializeAsAny[ModelSection], _MODEL] = _MODEL.field()
    data: DataConfig = DataConfig()
    algorithm: Annotated[SerializeAsAny[AlgorithmSection], _ALGORITHM] = _ALGORITHM.field()
    optimizer: OptimizerConfig = OptimizerConfig()
    local: LocalWorkConfig = LocalWorkConfig()
    participation: ParticipationConfig = ParticipationConfig()
    clock: ClockConfig = ClockConfig()
    membership: MembershipConfig = MembershipConfig()
    comm: CommConfig = CommConfig()
    log: LogConfig = LogConfig()
    callbacks: Annotated[
        tuple[Annotated[SerializeAsAny[CallbackSection], BeforeValidator(CALLBACK.validate)], ...],
        BeforeValidator(as_tuple),
    ] = Field(
        (),
        description="what sees every round on rank 0: a list of callbacks, each with its name and "
        "settings, for example callbacks='[{name: early_stopping, patience: 3}]'",
    )

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        default = f"runs/{self.task.name}-{self.algorithm.name}-s{self.run.seed}"
        return Path(self.run.dir or default).expanduser()

    @property
    def used_plugins(self) -> list[Plugin]:
        """The loaded plug-ins that the config names, or that something it names belongs to."""
        return used_plugins(_texts(self.model_dump(mode="json", exclude={"run"})), self.plugins)

    def to_yaml(self, exclude: Mapping[str, set[str]] | None = None) -> str:
        """Return the resolved config, without some keys of its sections, as YAML that `--config` takes."""
        content = self.model_dump(mode="json", by_alias=True, exclude=dict(exclude or {}))
        return yaml.dump(content, Dumper=Dumper, sort_keys=False)


def keys_of(
    kind: type[Section], prefix: str = "", inside: bool = True
) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted key and the field of every key of a section.

    Of a key with variants, the keys of all of them, or with `inside=False` its name alone.
    """
    for attribute, field in kind.model_fields.items():
        name, annotation = field.alias or attribute, field.annotation
        if (variant := variant_of(field)) and inside:
            for one in variant.names:
                yield from keys_of(variant.section(one), f"{prefix}{name}.")
        elif variant:
            names: Any = Literal[tuple(variant.names)]
            yield (
                f"{prefix}{name}.name",
                FieldInfo(annotation=names, default=variant.default, description=field.description),
            )
        # Python 3.10 calls list[int] a type, so look at its origin first.
        elif (
            get_origin(annotation) is None
            and isinstance(annotation, type)
            and issubclass(annotation, Section)
        ):
            yield from keys_of(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def variants_in(kind: type[Section]) -> dict[str, Variant]:
    """Return the keys of a section that have variants."""
    marks = {name: variant_of(field) for name, field in kind.model_fields.items()}
    return {name: one for name, one in marks.items() if one}


def groups() -> Mapping[str, Variant]:
    """Return every dotted key that has variants: `task`, `model`, `algorithm`, `task.source`, ..."""
    return _groups(register.version)


@cache
def _groups(version: int) -> Mapping[str, Variant]:
    def below(kind: type[Section], prefix: str) -> Iterator[tuple[str, Variant]]:
        for key, variant in variants_in(kind).items():
            yield f"{prefix}{key}", variant
            for name in variant.names:
                yield from below(variant.section(name), f"{prefix}{key}.")

    return dict(below(Config, ""))


def groups_above(key: str) -> list[str]:
    """Return the keys with variants that a dotted key is in, the outermost first."""
    return [group for group in groups() if key.startswith(f"{group}.")]


def owners_of(section: str, key: str) -> list[str]:
    """Return the variants of a section, or of a group in one, that have a key or group of keys.

    >>> owners_of("algorithm", "sampling.rate")
    ['cobo']
    """
    return [
        name
        for name in groups()[section].names
        if any(
            f"{known}.".startswith(f"{key}.")
            for known, _ in keys_of(groups()[section].section(name))
        )
    ]


def all_keys() -> list[tuple[str, FieldInfo]]:
    """Return every dotted key with its field; a key of several variants appears once for each."""
    return list(keys_of(Config))


def callback_keys(name: str) -> list[tuple[str, FieldInfo]]:
    """Return the keys of a callback with their fields: `callbacks.patience`."""
    return list(keys_of(CALLBACK.section(name), "callbacks."))


def text_sections() -> dict[str, str]:
    """Return the sections that a text may stand for, and the key in each that it then gives."""
    kinds = {section: field.annotation for section, field in Config.model_fields.items()}
    return {
        section: kind.text_key
        for section, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Section) and kind.text_key
    }


def meant_key(key: str) -> str:
    """Return the key that a text at this key gives: another one where the text stands for a section."""
    inside = text_sections().get(key)
    return f"{key}.{inside}" if inside else key


def text_keys() -> frozenset[str]:
    """Return the keys whose value, or whose list's items, are text or one of some names."""
    return _text_keys(register.version) | text_sections().keys()


@cache
def _text_keys(version: int) -> frozenset[str]:
    keys = [*all_keys(), *(key for name in CALLBACKS for key in callback_keys(name))]
    return frozenset(key for key, field in keys if _is_text(field.annotation))


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Annotated, tuple):
        return _is_text(get_args(annotation)[0])
    return annotation is str or isinstance(next(iter(get_args(annotation)), None), str)
