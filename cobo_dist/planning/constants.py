"""What a prediction of seconds needs to know of a machine: a dozen measured numbers, kept as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from cobo_dist.config import Config
from cobo_dist.errors import ConfigError
from cobo_dist.settings import Section

Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class Subject(Section):
    """What was measured: seconds of one model say nothing about another's."""

    task: str
    algorithm: str
    parameters: Annotated[int, Field(ge=1)]  # d, trained by a client
    examples: Annotated[int, Field(ge=1)]  # of a client in one gradient
    dtype: str
    autocast: str


class Pass(Section):
    """Gradients of m clients in one call of an engine take call + m client seconds."""

    call: Seconds
    client: Seconds


class Link(Section):
    """Between two ranks: seconds of a small message, and bytes a second that a rank sends and receives."""

    latency: Seconds
    bandwidth: Rate


class Overhead(Section):
    """Seconds of bookkeeping: of a round, of each client in it, of each end of a pair, of each added row."""

    round: Seconds
    client: Seconds
    end: Seconds
    addition: Seconds


class Constants(Section):
    """A machine, as one rank with `threads` threads finds it."""

    of: Subject
    cores: Annotated[int, Field(ge=1)]  # of a host; its GPUs where ranks compute on those
    threads: Annotated[int, Field(ge=1)]  # cores that one rank keeps busy; a rank on a GPU: 1
    passes: Annotated[dict[str, Pass], Field(min_length=1)]  # by engine
    memory_bandwidth: Rate  # bytes a second read and written where rows are added
    products: Rate  # multiply-adds a second of matrix products
    link: Link | None  # none where one rank measured alone
    overhead: Overhead


def subject_of(config: Config, parameters: int) -> Subject:
    """Return what a config's seconds are of; `parameters` is d."""
    return Subject(
        task=config.task.name,
        algorithm=config.algorithm.name,
        parameters=parameters,
        examples=config.data.examples_a_round,
        dtype=config.run.dtype,
        autocast=config.run.autocast,
    )


def write_constants(constants: Constants, path: Path) -> None:
    """Write what `read_constants` reads.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.write_text(constants.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--constants {path} cannot be written: {error.strerror}; name another file"
        ) from None


def read_constants(path: Path, subject: Subject) -> Constants:
    """Return the constants in a file, measured of this subject.

    Raises:
        ConfigError: no such file, not such a file, or measured of another subject, in one line.
    """
    again = "measure it with --measure --constants FILE"
    try:
        text = path.read_text(encoding="utf-8")
        constants = Constants.model_validate_json(text)
    except OSError as error:
        raise ConfigError(f"--constants {path} cannot be read: {error.strerror}; {again}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--constants {path} is no text; {again}") from None
    except ValidationError as error:
        raise ConfigError(f"--constants {path} {_first(error)}; {again}") from None
    for name, value in subject.model_dump().items():
        measured = getattr(constants.of, name)
        if measured != value:
            raise ConfigError(
                f"--constants {path} was measured with {name} {measured}, but this run has {value}; "
                f"{again}"
            )
    return constants


def _first(error: ValidationError) -> str:
    """Return the first mistake in words."""
    mistake = error.errors(include_url=False, include_context=False)[0]
    key, kind = ".".join(map(str, mistake["loc"])), mistake["type"]
    if kind == "json_invalid":
        return "is not valid JSON"
    if not key:
        return "holds no group of constants"
    if kind == "missing":
        return f"lacks {key}"
    if kind == "extra_forbidden":
        return f"has the unknown key {key}"
    return f"has {key}={mistake['input']!r}: {mistake['msg'].replace('Input', 'it', 1)}"
