"""The config: defaults < YAML file < `key.path=value` arguments; typed, frozen, checked as a whole.

Each room owns the class of its section; this module puts them together and turns every mistake into
one line that names the key, the value and the remedy.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from cobo_dist.algorithms.cobo import CoBoConfig
from cobo_dist.algorithms.registry import AlgorithmConfig
from cobo_dist.clients.optimizers import OptimizerConfig
from cobo_dist.comm.session import CommConfig
from cobo_dist.errors import ConfigError
from cobo_dist.run_config import LogConfig, RunConfig
from cobo_dist.settings import Section
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.digits import DigitsConfig
from cobo_dist.tasks.models import MlpConfig
from cobo_dist.tasks.registry import ModelConfig, TaskConfig


class Config(Section):
    """All of it. The defaults are the quickstart."""

    run: RunConfig = RunConfig()
    task: Annotated[TaskConfig, Field(discriminator="name")] = DigitsConfig()
    model: Annotated[ModelConfig, Field(discriminator="name")] = MlpConfig()
    data: DataConfig = DataConfig()
    algorithm: Annotated[AlgorithmConfig, Field(discriminator="name")] = CoBoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
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
        return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


VARIANTS: dict[str, dict[str, type[Section]]] = {
    section: {kind.model_fields["name"].default: kind for kind in get_args(union)}
    for section, union in (
        ("task", TaskConfig),
        ("model", ModelConfig),
        ("algorithm", AlgorithmConfig),
    )
}


# -- reading -----------------------------------------------------------------------------------------


def load_config(file: str | None, arguments: Sequence[str]) -> Config:
    """Return the config of a YAML file (if any) and `key.path=value` arguments.

    Raises:
        ConfigError: anything wrong with either, in one line.
    """
    from_file = {} if file is None else _read_yaml(file)
    from_arguments = _read_arguments(arguments)
    for section in VARIANTS:
        _drop_other_variant(section, from_file, from_arguments)
    try:
        merged = _merge(from_file, from_arguments)
    except RecursionError:
        raise ConfigError("the config contains itself (a YAML alias inside its anchor)") from None
    _name_variants(merged)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, merged)) from None
    _check_across(config)
    return config


def variant_names(file: str | None, names: Mapping[str, str]) -> dict[str, str]:
    """Return the variant that each section has with `{"algorithm": "local", ...}` typed over a YAML file.

    Nothing else is checked.

    Raises:
        ConfigError: the file cannot be read, or a section is no group of keys.
    """
    arguments = _read_arguments([f"{section}.name={name}" for section, name in names.items()])
    merged = _merge({} if file is None else _read_yaml(file), arguments)
    _name_variants(merged)
    groups = {section: merged[section] for section in VARIANTS}
    return {name: str(one["name"]) for name, one in groups.items() if isinstance(one, dict)}


def _name_variants(merged: dict[str, Any]) -> None:
    """Fill in the names that are not given: the quickstart's, and the paper's model for its tasks."""
    for section, default in (("task", "digits"), ("algorithm", "cobo"), ("model", "mlp")):
        if isinstance(given := merged.setdefault(section, {}), dict):
            task = merged["task"].get("name") if isinstance(merged["task"], dict) else None
            if section == "model" and task in ("cross_silo", "cross_device"):
                default = "resnet9"
            if section == "model" and task == "language":
                default = "gpt2"
            given.setdefault("name", default)


def _check_across(config: Config) -> None:
    """Check rules that join several keys."""
    for section in (config.algorithm, config.optimizer):
        if words := section.contradiction():
            raise ConfigError(words)
    task = config.task.name
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
    if task == "quadratic" and splits != ("test",):
        raise ConfigError(
            f"run.eval_splits={list(splits)}: task quadratic has only test; drop the rest"
        )


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2: PyYAML reads 1e-3 as text."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: text that looks like a number to it is quoted."""


_FLOAT = re.compile(
    r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN)$"
)
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    # PyYAML lets these through where a tag does not fit its value: `!!bool x`, `!!timestamp x`.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(f"{where}{line} is not valid YAML: {problem}") from None


def _read_yaml(file: str) -> dict[str, Any]:
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"--config {path} does not exist; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"--config {path} cannot be read: {reason}") from None
    content = _parse(text, f"--config {path}")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"--config {path} holds a {type(content).__name__}; it must hold sections such as "
            "`run:` and `algorithm:` with keys below them"
        )
    return content


def _read_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    texts = {key for key, field in all_keys() if field.annotation is str}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key or argument.startswith("-"):
            raise ConfigError(
                f"argument {argument!r} is not understood; write key.path=value, for example "
                "run.rounds=500, or see --help"
            )
        branch = tree
        *path, last = key.split(".")
        for step in path:
            branch = branch.setdefault(step, {})
            if not isinstance(branch, dict):
                raise ConfigError(f"argument {argument!r}: {step} already has a value")
        value = _parse(text, f"argument {argument!r}") if text else ""
        # A name is taken as it is written: run.dir=0123 is no octal number, and `on` no truth value.
        branch[last] = text if key in texts and not isinstance(value, str) else value
    return tree


def _drop_other_variant(section: str, below: dict[str, Any], above: dict[str, Any]) -> None:
    """Let `algorithm.name=local` on the command line win over a file written for cobo.

    Keys that the file sets for the old name and the new one does not have are left out.
    """
    base, over = below.get(section), above.get(section)
    if not isinstance(base, dict) or not isinstance(over, dict) or "name" not in over:
        return
    name = over["name"]
    if not isinstance(name, str) or name not in VARIANTS[section] or name == base.get("name"):
        return
    kind = VARIANTS[section][name]
    known = {key for other in VARIANTS[section].values() for key in other.model_fields}
    for key in [key for key in base if key in known and key not in kind.model_fields]:
        del base[key]


def _merge(below: Mapping[str, Any], above: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        held = merged.get(key)
        if isinstance(value, dict) and held is not None:
            if not isinstance(held, dict):
                raise ConfigError(_must_be_group(f"{at}{key}", held))
            value = _merge(held, value, f"{at}{key}.")
        merged[key] = value
    return merged


# -- mistakes in words -------------------------------------------------------------------------------


def _explain(error: ValidationError, given: Mapping[str, Any]) -> str:
    """Return one line for the first mistake, and how many more there are."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    path = [str(step) for step in first["loc"]]
    # pydantic puts a variant's name into the path: algorithm.cobo.rho means algorithm.rho.
    if len(path) > 1 and path[0] in VARIANTS and path[1] in VARIANTS[path[0]]:
        del path[1]
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return _in_words(path, first, given) + more


def _in_words(path: list[str], mistake: Any, given: Mapping[str, Any]) -> str:
    key, value, kind = ".".join(path), mistake.get("input"), mistake["type"]
    if kind == "extra_forbidden":
        while isinstance(value, dict) and value and path[0] not in Config.model_fields:
            path, value = [*path, str(next(iter(value)))], next(iter(value.values()))
        return _unknown_key(path, given)
    if kind in ("union_tag_invalid", "literal_error"):
        names = list(VARIANTS[key]) if kind == "union_tag_invalid" else _literals(mistake["ctx"])
        if kind == "union_tag_invalid":
            key, value = f"{key}.name", value.get("name") if isinstance(value, dict) else value
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}={value!r} is none of {', '.join(names)}{hint}"
    if kind in ("model_attributes_type", "model_type", "dict_type"):
        return _must_be_group(key, value)
    return f"{key}={value!r} is refused: {_lower(mistake['msg'])}"


def _literals(context: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", str(context.get("expected", "")))


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should", "it must")
    return message[:1].lower() + message[1:]


def _must_be_group(key: str, value: object) -> str:
    inside = [known for known, _ in all_keys() if known.startswith(f"{key}.")]
    example = f", for example {inside[0]}=..." if inside else ""
    return f"{key}={value!r} must be a group of keys{example}"


def _unknown_key(path: list[str], given: Mapping[str, Any]) -> str:
    key = ".".join(path)
    section = path[0]
    owners = owners_of(section, ".".join(path[1:])) if section in VARIANTS else []
    if owners:
        return (
            f"{key} is no key of {section}.name={given[section]['name']}; it belongs to "
            f"{', '.join(owners)}: drop it or set {section}.name={owners[0]}"
        )
    known_keys = [known for known, _ in all_keys()]
    near = difflib.get_close_matches(key, known_keys, n=1, cutoff=0.5)
    if not near:  # perhaps right in the last step, wrong in the section
        near = [known for known in known_keys if known.split(".")[-1] == path[-1]][:1]
    hint = f"did you mean {near[0]}?" if near else "see --help for all keys"
    return f"{key} is not a known key; {hint}"


# -- all keys ----------------------------------------------------------------------------------------


def _keys(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for attribute, field in kind.model_fields.items():
        name, annotation = field.alias or attribute, field.annotation
        # Python 3.10 calls list[int] a type, so look at its origin first.
        if (
            get_origin(annotation) is None
            and isinstance(annotation, type)
            and issubclass(annotation, Section)
        ):
            yield from _keys(annotation, f"{prefix}{name}.")
        elif kind is Config:
            for variant in get_args(annotation):
                yield from _keys(variant, f"{prefix}{name}.")
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
        if any(f"{known}.".startswith(f"{key}.") for known, _ in _keys(kind))
    ]


def all_keys() -> list[tuple[str, FieldInfo]]:
    """Return every key path with its field; keys of several variants appear once for each."""
    return list(_keys(Config))


def describe_keys() -> str:
    """Return the text of `--help`: every key with type, default and one line of meaning."""
    lines = []
    for section, field in Config.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        for kind in kinds:
            doc = (kind.__doc__ or "").strip().splitlines()[0]
            name = kind.model_fields["name"].default if section in VARIANTS else ""
            title = f"{section}.name={name}: {doc}" if name else f"{section}: {doc}"
            default = " (default)" if name and kind is type(field.default) else ""
            lines.append(f"\n{title}{default}")
            for key, info in _keys(kind, f"{section}."):
                if section in VARIANTS and key == f"{section}.name":
                    continue
                lines.append(f"  {key}  ({_type_name(info.annotation)}, default {_default(info)})")
                lines.append(f"      {info.description}")
    return "\n".join(lines).strip()


def _default(field: FieldInfo) -> str:
    value = field.default
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)).replace("'", "") if isinstance(value, tuple) else str(value)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) in (Annotated, Union):
        return _type_name(get_args(annotation)[0])
    options = get_args(annotation)
    if options and all(isinstance(option, str) for option in options):
        return "|".join(options)
    if get_origin(annotation) is tuple:
        return f"list of {_type_name(options[0])}"
    return {int: "int", float: "float", bool: "bool", str: "text"}.get(annotation, str(annotation))
