"""Rules on keys of several sections at once."""

from __future__ import annotations

from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.clients.local_config import ParticipationConfig
from cobo_dist.config.schema import Config
from cobo_dist.errors import ConfigError
from cobo_dist.scenario.clock import ClockConfig
from cobo_dist.scenario.drift import why_refused
from cobo_dist.scenario.membership import MembershipConfig
from cobo_dist.settings import Section
from cobo_dist.tasks.registry import TASKS
from cobo_dist.tasks.sections import OWNED_DATA_KEYS


def check_across(config: Config) -> None:
    """Check rules on several keys at once.

    Raises:
        ConfigError: values that do not go together.
    """
    sections: tuple[Section, ...] = (
        config.task, config.algorithm, config.optimizer, config.local, config.participation,
        config.clock, config.membership, config.comm,
    )  # fmt: skip
    for section in sections:
        if message := section.contradiction():
            raise ConfigError(message)
    if message := why_refused(config.task.drift_events, config.run.rounds):
        raise ConfigError(message)
    _check_data(config)
    _check_clients(config)
    _check_deterministic(config)
    _check_evaluation(config)
    _check_compression(config)
    _check_asynchronous(config)


def _check_data(config: Config) -> None:
    """Check that the task reads the data's keys that are given."""
    for key in OWNED_DATA_KEYS:
        value = getattr(config.data, key)
        given = value != type(config.data).model_fields[key].default
        if given and key not in config.task.data_keys:
            readers = [name for name, one in TASKS.items() if key in one.target.data_keys]
            raise ConfigError(
                f"data.{key}={value} is not read by task.name={config.task.name}, but by "
                f"{', '.join(readers)}: drop it or set task.name={readers[0]}"
            )


def _check_clients(config: Config) -> None:
    """Check what clients do in a round, and who takes part in it."""
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
    changed = (
        key for key, value in ParticipationConfig() if getattr(config.participation, key) != value
    )
    key = config.algorithm.draws_clients or next((f"participation.{key}" for key in changed), "")
    if key and not config.clock.waits_for_all:
        raise ConfigError(
            f"clock.policy={config.clock.policy} says by speed who takes part in a round, and {key} says it "
            f"otherwise; drop {key}, or set clock.policy=sync"
        )
    factor = config.membership.sampling_factor
    if factor > 1 and not config.algorithm.draws_pairs:
        raise ConfigError(
            f"membership.sampling_factor={factor:g} is for pairs of clients that are drawn, and "
            f"algorithm.name={config.algorithm.name} draws none here; drop it"
        )


def _check_deterministic(config: Config) -> None:
    """Check what comm.deterministic rules out."""
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
    if config.run.keep == "best" and config.task.drift_events:
        raise ConfigError(
            "run.keep=best compares validation losses of all rounds, and task.drift changes the data; set "
            "run.keep=last"
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


def _check_compression(config: Config) -> None:
    """Check that clients read compressed models alone, as soon as they are sent."""
    key = f"comm.compression={config.comm.compression}"
    if config.comm.compresses is None:
        return
    if not config.algorithm.compresses_models:
        raise ConfigError(
            f"{key} is for algorithms whose clients read models of others as neighbors, and algorithm.name="
            f"{config.algorithm.name} has other messages; set comm.compression=none"
        )
    if config.clock.latency or config.clock.bandwidth or config.clock.trace:
        raise ConfigError(
            f"{key} sends differences that count at once, and clock.latency, clock.bandwidth and clock.trace "
            "delay models; drop one of them"
        )


def _check_asynchronous(config: Config) -> None:
    """Check that ranks can go at their own pace."""
    if config.comm.mode == "synchronous":
        return
    mode = "comm.mode=asynchronous"
    if not config.algorithm.runs_asynchronously:
        ready = [
            name
            for name, one in ALGORITHMS.items()
            if one.target.Config().runs_asynchronously and one.source == "cobo_dist"
        ]
        raise ConfigError(
            f"{mode}: algorithm.name={config.algorithm.name} with these settings needs all ranks in a round; "
            f"take one of {', '.join(ready)}, or comm.mode=synchronous"
        )
    for key, given, default in (
        ("participation", config.participation, ParticipationConfig()),
        ("membership", config.membership, MembershipConfig()),
        ("clock", config.clock, ClockConfig()),
    ):
        if given != default:
            raise ConfigError(
                f"{key} says who takes part in which round, and {mode} leaves that to how fast ranks are; "
                f"drop {key}, or set comm.mode=synchronous"
            )
