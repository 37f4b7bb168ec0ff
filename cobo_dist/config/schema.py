"""The whole config as a class: the sections that each package owns, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import Field
from pydantic.fields import FieldInfo

from cobo_dist.algorithms.cobo import CoBoConfig
from cobo_dist.algorithms.registry import AlgorithmConfig
from cobo_dist.clients.local_work import LocalWorkConfig
from cobo_dist.clients.optimizers import OptimizerConfig
from cobo_dist.comm.session import CommConfig
from cobo_dist.errors import ConfigError
from cobo_dist.run_config import LogConfig, RunConfig
from cobo_dist.settings import Section
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.digits import DigitsConfig
from cobo_dist.tasks.models import MlpConfig
from cobo_dist.tasks.registry import ModelConfig, TaskConfig
from cobo_dist.yaml_text import Dumper


class Config(Section):
    """The whole config. The defaults are the quickstart.

    >>> Config().algorithm.name, str(Config().run_dir)
    ('cobo', 'runs/digits-cobo-s0')
    """

    run: RunConfig = RunConfig()
    task: Annotated[TaskConfig, Field(discriminator="name")] = DigitsConfig()
    model: Annotated[ModelConfig, Field(discriminator="name")] = MlpConfig()
    data: DataConfig = DataConfig()
    algorithm: Annotated[AlgorithmConfig, Field(discriminator="name")] = CoBoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    local: LocalWorkConfig = LocalWorkConfig()
    comm: CommConfig = CommConfig()
    log: LogConfig = LogConfig()

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        default = f"runs/{self.task.name}-{self.algorithm.name}-s{self.run.seed}"
        return Path(self.run.dir or default).expanduser()

    def to_yaml(self, exclude: Mapping[str, set[str]] | None = None) -> str:
        """Return the resolved config, without some keys of its sections, as YAML that `--config` takes."""
        content = self.model_dump(mode="json", by_alias=True, exclude=dict(exclude or {}))
        return yaml.dump(content, Dumper=Dumper, sort_keys=False)


VARIANTS: dict[str, dict[str, type[Section]]] = {
    section: {kind.model_fields["name"].default: kind for kind in get_args(union)}
    for section, union in (
        ("task", TaskConfig),
        ("model", ModelConfig),
        ("algorithm", AlgorithmConfig),
    )
}


def keys_of(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted key and the field of every key of a section."""
    for attribute, field in kind.model_fields.items():
        name, annotation = field.alias or attribute, field.annotation
        # Python 3.10 calls list[int] a type, so look at its origin first.
        if (
            get_origin(annotation) is None
            and isinstance(annotation, type)
            and issubclass(annotation, Section)
        ):
            yield from keys_of(annotation, f"{prefix}{name}.")
        elif kind is Config:
            for variant in get_args(annotation):
                yield from keys_of(variant, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def owners_of(section: str, key: str) -> list[str]:
    """Return the variants of a section that have a key or group of keys.

    >>> owners_of("algorithm", "sampling.rate")
    ['cobo']
    """
    return [
        name
        for name, kind in VARIANTS[section].items()
        if any(f"{known}.".startswith(f"{key}.") for known, _ in keys_of(kind))
    ]


def all_keys() -> list[tuple[str, FieldInfo]]:
    """Return every dotted key with its field; a key of several variants appears once for each."""
    return list(keys_of(Config))


@cache
def text_keys() -> frozenset[str]:
    """Return the keys whose value, or whose list's items, are text or one of some names."""
    return frozenset(key for key, field in all_keys() if _is_text(field.annotation))


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Annotated, tuple):
        return _is_text(get_args(annotation)[0])
    return annotation is str or isinstance(next(iter(get_args(annotation)), None), str)


def check_across(config: Config) -> None:
    """Check rules on several keys at once.

    Raises:
        ConfigError: values that do not go together.
    """
    for section in (config.algorithm, config.optimizer, config.local):
        if message := section.contradiction():
            raise ConfigError(message)
    if config.local.several_steps and config.algorithm.takes_one_step:
        key = "epochs" if config.local.epochs else "steps"
        raise ConfigError(
            f"local.{key}={getattr(config.local, key)} does not serve algorithm.name="
            f"{config.algorithm.name}, which compares gradients at one model; leave local.{key} at its "
            "default"
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
    splits = config.run.eval_splits
    if len(set(splits)) < len(splits):
        raise ConfigError(f"run.eval_splits={list(splits)} names a split twice; name each once")
    if "test" not in splits:
        raise ConfigError(
            f"run.eval_splits={list(splits)} lacks test, which the summary reports; add it"
        )
    if config.task.name == "quadratic" and splits != ("test",):
        raise ConfigError(
            f"run.eval_splits={list(splits)}: task quadratic has only test; drop the rest"
        )
