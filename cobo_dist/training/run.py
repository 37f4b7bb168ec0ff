"""A config in, a trained run out: ranks connect, prepare, train, and end together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

from cobo_dist.callbacks.callback import Callback
from cobo_dist.checkpoint import resume
from cobo_dist.comm.asynchronous.mailbox import Mailbox, open_mailbox
from cobo_dist.comm.session import Session, check_backend, open_session, settle_timeout
from cobo_dist.comm.startup.devices import choose_device, wire_device
from cobo_dist.comm.startup.launch_env import Launch, check_open_files
from cobo_dist.comm.startup.start_guard import StartGuard
from cobo_dist.comm.transports.base import LostContact
from cobo_dist.config import Config
from cobo_dist.config.differences import resume_differences
from cobo_dist.errors import EXIT_DONE, ConfigError
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.training.build import open_trainer
from cobo_dist.training.finish import finish
from cobo_dist.training.preparation import prepare, set_up_torch
from cobo_dist.training.shutdown import failure, stop
from cobo_dist.training.signals import Signals
from cobo_dist.training.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """How a run ended that did not fail: the exit code, and the signal that stopped it (0: none)."""

    code: int
    signal: int = 0


def run(
    config: Config,
    launch: Launch,
    guard: StartGuard | None = None,
    on_finished: Callable[[RunDir], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Train as the config says on the launched ranks; return how the run ended.

    `guard` ends this process where a signal, or another rank's end, comes before the run has begun.
    `on_finished`: called on rank 0 with the run folder once all is written, while this run still owns it.
    `callbacks`: see the run beside those of the config; the same on every rank.

    Raises:
        ConfigError: nothing was started or written.
        RunFailure: the run started and failed; status.json says why.
    """
    check_open_files(launch)
    check_backend(config.comm.backend, launch)
    device = choose_device(config.run.device, config.comm.backend, launch)
    comm = settle_timeout(config.comm, wire_device(device, config.comm.backend))
    config = config.model_copy(update={"comm": comm})
    # Ranks connect before they read data, so that a rank that dies meanwhile is noticed.
    with open_session(launch, config.comm, device, guard) as session:
        return run_in_session(config, session, on_finished, callbacks)


def run_in_session(
    config: Config,
    session: Session,
    on_finished: Callable[[RunDir], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Train over ranks that are connected already; see `run`."""
    launch, folder, reached = session.launch, RunDir(config.run_dir), 0
    set_up_torch(config.run, launch.cores, config.comm.deterministic, session.device)
    trainer: Trainer | None = None
    # Signals are caught while a failure is reported too: when a rank dies, launchers send SIGTERM to all.
    with Signals(ends_process=session.guard.is_watching) as signals:
        try:
            prepared = prepare(config, launch, callbacks=callbacks)
            problem = prepared.agree(session)
            found = resume.find(
                config.run, folder, partial(resume_differences, config),
                session, problem.placement, problem.data, problem.plugins,
            )  # fmt: skip
            if isinstance(found, resume.Done):
                if launch.rank == 0:
                    print(
                        f"run.dir={folder.path} holds this run, finished: nothing to do", flush=True
                    )
                return Outcome(EXIT_DONE)
            reached = 0 if found is None else found.round
            with (
                _mailbox(config, session) as mailbox,
                open_trainer(
                    config, session, problem, found, folder, prepared.epoch, mailbox
                ) as trainer,
            ):
                if signal := trainer.fit(signals):
                    code = stop(trainer, session, folder, signal)
                else:
                    code = finish(trainer, session, folder, config.algorithm.name)
                trainer.callbacks.end()
            if signal:
                return Outcome(code, signal)
            # Then every rank finds all files but the figures. A rank that is lost has written its own.
            with suppress(LostContact):
                session.agree(None)
            if launch.rank == 0 and on_finished is not None:
                on_finished(folder)
            return Outcome(code)
        except ConfigError:
            raise
        except BaseException as error:
            r = reached if trainer is None else trainer.round
            raise failure(error, session, folder, r) from error
        finally:
            if folder.owner is not None:
                folder.owner.release()


def _mailbox(config: Config, session: Session) -> AbstractContextManager[Mailbox | None]:
    """Return the mailbox of ranks that go at their own pace, to be closed; None of others."""
    if config.comm.mode == "synchronous":
        return nullcontext()
    return open_mailbox(session.transport, session.connect_seconds or config.comm.timeout)
