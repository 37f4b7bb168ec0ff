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
from cobo_dist.errors import ConfigError
from cobo_dist.plugins import Plugin, used_plugins
from cobo_dist.registry import Kind, Variant, register, variant_of
from cobo_dist.run_config import LogConfig, RunConfig
from cobo_dist.scenario.clock import ClockConfig
from cobo_dist.scenario.membership import MembershipConfig
from cobo_dist.settings import Section, Texts, as_tuple
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.registry import MODELS, TASKS
from cobo_dist.tasks.sections import OWNED_DATA_KEYS, ModelSection, TaskSection
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
    membership: MembershipConfig = MembershipConfig()
    clock: ClockConfig = ClockConfig()
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


def check_across(config: Config) -> None:
    """Check rules on several keys at once.

    Raises:
        ConfigError: values that do not go together.
    """
    sections: tuple[Section, ...] = (
        config.task, config.algorithm, config.optimizer, config.local, config.participation,
        config.membership, config.clock,
    )  # fmt: skip
    for section in sections:
        if message := section.contradiction():
            raise ConfigError(message)
    for key in OWNED_DATA_KEYS:
        value = getattr(config.data, key)
        given = value != type(config.data).model_fields[key].default
        if given and key not in config.task.data_keys:
            readers = [name for name, one in TASKS.items() if key in one.target.data_keys]
            raise ConfigError(
                f"data.{key}={value} is not read by task.name={config.task.name}, but by "
                f"{', '.join(readers)}: drop it or set task.name={readers[0]}"
            )
    if config.local.several_steps and config.algorithm.takes_one_step:
        key = "epochs" if config.local.epochs else "steps"
        raise ConfigError(
            f"local.{key}={getattr(config.local, key)} does not serve algorithm.name="
            f"{config.algorithm.name}, which takes one local step a round; leave local.{key} at its "
            "default"
        )
    if config.participation != ParticipationConfig() and (key := config.algorithm.draws_clients):
        raise ConfigError(
            f"{key} of algorithm.name={config.algorithm.name} and participation both say how many clients "
            "take part; drop one of them"
        )
    drawn = config.participation != ParticipationConfig() or config.algorithm.draws_clients
    if drawn and not config.clock.waits_for_all:
        key = config.algorithm.draws_clients or next(
            f"participation.{key}"
            for key, value in config.participation
            if value != ParticipationConfig.model_fields[key].default
        )
        raise ConfigError(
            f"clock.policy={config.clock.policy} says by speed who takes part in a round, and {key} draws "
            f"clients; drop {key}, or set clock.policy=sync"
        )
    factor = config.membership.sampling_factor
    if factor > 1 and not config.algorithm.draws_pairs:
        raise ConfigError(
            f"membership.sampling_factor={factor:g} is for pairs of clients that are drawn, and "
            f"algorithm.name={config.algorithm.name} draws none here; drop it"
        )
    if config.comm.deterministic and config.run.engine == "vectorised":
        raise ConfigError(
            "comm.deterministic=true computes clients one by one, but run.engine=vectorised; "
            "leave run.engine at auto"
        )
    if config.comm.deterministic and config.comm.dtype != "model":
        raise ConfigError(
            f"comm.deterministic=true gives the same bits on any number of ranks, but comm.dtype="
            f"{config.comm.dtype} rounds what crosses between them; leave comm.dtype at model"
        )
    if config.comm.deterministic and config.run.threads > 1:
        raise ConfigError(
            f"comm.deterministic=true uses one thread, but run.threads={config.run.threads}; "
            "leave run.threads at 0"
        )
    _check_evaluation(config)


def _check_evaluation(config: Config) -> None:
    """Check what is evaluated, and what needs it."""
    splits = config.run.eval_splits
    if len(set(splits)) < len(splits):
        raise ConfigError(f"run.eval_splits={list(splits)} names a split twice; name each once")
    if "test" not in splits:
        raise ConfigError(
            f"run.eval_splits={list(splits)} lacks test, which the summary reports; add it"
        )
    if config.run.keep == "best" and "validation" not in splits:
        raise ConfigError(
            f"run.keep=best compares validation losses, and run.eval_splits={list(splits)} lacks "
            "validation; set run.eval_splits=[validation, test]"
        )
    if config.run.keep == "best" and config.data.eval_examples:
        raise ConfigError(
            "run.keep=best compares evaluations on all validation data, and data.eval_examples="
            f"{config.data.eval_examples} evaluates a part; set data.eval_examples=0"
        )
    if lacking := [split for split in splits if split not in config.task.splits]:
        raise ConfigError(
            f"run.eval_splits={list(splits)}: task {config.task.name} has only "
            f"{', '.join(config.task.splits)}; drop {', '.join(lacking)}"
        )
