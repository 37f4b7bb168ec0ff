"""`fit`: one run from Python code, on this process alone or on the ranks that a launcher started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from cobo_dist.callbacks.callback import Callback, check_callbacks
from cobo_dist.comm.startup.launch_env import read_launch
from cobo_dist.comm.transports.mpi_world import set_exit_code
from cobo_dist.config import config_of
from cobo_dist.config.from_python import Given, Overrides
from cobo_dist.errors import EXIT_DONE, EXIT_STOPPED, RunFailure
from cobo_dist.host import raise_open_files_limit
from cobo_dist.results.run import Run
from cobo_dist.terminal import safe_terminal
from cobo_dist.training.figures import draw_figures
from cobo_dist.training.run import run
from cobo_dist.training.signals import name_of

_begun: set[Path] = set()
"""The run folders of the runs that this process began."""


def fit(config: Given = None, overrides: Overrides = (), callbacks: Sequence[Callback] = ()) -> Run:
    """Train as a config says and return the run, on every rank, once its files are written.

    Under torchrun, srun or mpirun all ranks must make this call with the same arguments. Alone, it is one
    rank. The process is left as it was: signal handlers, threads, PyTorch's settings, the environment.

    Args:
        config: path of a YAML file, nested dictionaries or a `Config`; None: the quickstart.
        overrides: `["run.rounds=500"]` or `{"run.rounds": 500}`; they win over `config`.
        callbacks: see the run beside those that the config names; the same on every rank.

    Raises:
        ConfigError: nothing was started or written.
        RunFailure: the run started and failed; status.json says why. With `code` 75, SIGTERM or SIGUSR1
            stopped it with a checkpoint.
        KeyboardInterrupt: Ctrl-C stopped it with a checkpoint, or a second one without.
    """
    callbacks = check_callbacks(callbacks)
    resolved = config_of(config, overrides)
    found = Run(resolved.run_dir)
    with safe_terminal(), _process_as_it_was():
        raise_open_files_limit()
        launch = read_launch(os.environ)
        if found.path in _begun:  # begun anew by this script, not by its launcher
            launch = replace(launch, restarts=0, job="")
        _begun.add(found.path)
        try:
            on_finished = draw_figures if resolved.log.figures else None
            outcome = run(resolved, launch, on_finished=on_finished, callbacks=callbacks)
        except RunFailure as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise KeyboardInterrupt(str(error)) from error
            raise
    line = (
        f"stopped by {name_of(outcome.signal)} with a checkpoint in {found.path}"
        if outcome.signal
        else ""
    )
    if outcome.signal == signal.SIGINT:
        raise KeyboardInterrupt(line)
    if outcome.code == EXIT_STOPPED:
        raise RunFailure(line, code=EXIT_STOPPED)
    set_exit_code(EXIT_DONE)
    return found


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Undo at the end what a run sets in its process (`set_up_torch`), however it ends."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    precision = torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
        if (torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision) != precision:
            torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision = precision
        torch.backends.cudnn.benchmark = benchmark
