"""Random configs, malformed files and hostile run folders through `cobo_dist.train.main`, in empty folders.

Each must be refused with code 2, one line and no run folder, or run, which is kept tiny. A kind and a seed
name a case, so that a failure can be repeated:

    python -m stress --only fuzz --case KIND:SEED
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path

from cobo_dist.storage.files import remove_tree

from . import files, folders, texts
from .outcome import Outcome, progress, shorten
from .ranks import environment, server

CONFIGS: dict[str, Callable[[random.Random, Path], list[str]]] = {
    "real-config": texts.real_config,
    "random-yaml": texts.random_yaml,
    "arguments": texts.random_arguments,
}
KINDS = CONFIGS | files.KINDS | {"folder": folders.folder}
LANGUAGE_KINDS = ("texts", "gguf", "safetensors")
MEMORY_BYTES = 3 << 30
"""Bytes that a case may allocate beyond the loaded libraries: some cases ask for absurd sizes."""
FAILURES = ("became", "memory", "make room")
"""Words of allowed failures of a run that started: it diverged, or is too large for this machine."""


@dataclass(frozen=True)
class CaseResult:
    """The result of one case."""

    code: int | None  # None: an exception escaped, or the process died
    out: str
    err: str
    arguments: list[str]
    left: bool = False  # a run folder exists
    executed: bool = False  # code from a malformed file ran
    touched: str = ""  # what was changed outside the run folder
    seconds: float = 0.0

    def complaint(self) -> str:
        """Return what is wrong with the result; empty if nothing is."""
        said = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code is None:
            return self.err
        if self.touched:
            return self.touched
        if self.executed:
            return "it executed code that came with a file"
        if "Traceback" in self.err + self.out:
            return f"a stack trace: {shorten(self.err)}"
        if self.code == 0:
            return ""
        if len(said) != 1:
            return f"code {self.code} and {len(said)} lines: {shorten(self.err)}"
        if self.code == 2:
            return f"refused, and a run folder was left: {said[0]}" if self.left else ""
        if self.code == 1 and any(word in said[0] for word in FAILURES):
            return ""
        return f"code {self.code}: {shorten(said[0])}"


def cases(kinds: Sequence[str], count: int, seed: int = 0) -> Iterator[tuple[str, int]]:
    """Yield kind and seed of `count` cases, kinds in turn."""
    for number in range(count):
        yield kinds[number % len(kinds)], seed + number


def fuzz(
    configs: int,
    malformed: int,
    hostile: int,
    folder: Path,
    seed: int = 0,
    patience: float = 120.0,
    kinds: Sequence[str] = tuple(files.KINDS),
) -> list[Outcome]:
    """Try random configs, malformed files of these kinds, and hostile run folders.

    A case may take `patience` seconds.
    """
    rows = []
    for action, which, count in (
        ("random configs", tuple(CONFIGS), configs),
        ("malformed files", kinds, malformed),
        ("hostile run folders", ("folder",), hostile),
    ):
        if count:
            rows.append(
                _row(f"{count} {action}", list(cases(which, count, seed)), folder, patience)
            )
    return rows


def one(kind: str, seed: int, folder: Path, patience: float = 120.0) -> list[Outcome]:
    """Try one case again, and show all that it printed."""
    return [_row(f"{kind}:{seed}", [(kind, seed)], folder, patience, everything=True)]


def _row(
    action: str,
    which: list[tuple[str, int]],
    folder: Path,
    patience: float,
    everything: bool = False,
) -> Outcome:
    began = time.monotonic()
    wrong, shown, line, codes = 0, [], "", Counter[str]()
    for (kind, seed), result in _try(which, folder, patience):
        complaint = result.complaint()
        wrong += bool(complaint)
        codes["no code" if result.code is None else f"code {result.code}"] += 1
        if complaint or everything:
            given = [shorten(argument, 200) for argument in result.arguments]
            shown.append(f"{kind}:{seed} {given} {complaint}")
        if everything:
            shown.append(f"{result.seconds:.1f} s\n{result.out}\n{result.err}")
        said = [said for said in result.err.splitlines() if said.startswith("error: ")]
        line = said[0] if said and result.code == 2 else line
        progress(action, sum(codes.values()), len(which))
    return Outcome(
        action,
        "code 2 and one line, or a run; no stack trace, no hang, nothing of a file executed",
        f"{', '.join(f'{k}: {v}' for k, v in sorted(codes.items()))}; {wrong} wrong",
        time.monotonic() - began,
        not wrong,
        shorten(line),
        shown,
    )


# -- a worker process --------------------------------------------------------------------------------


def _try(
    which: list[tuple[str, int]], folder: Path, patience: float
) -> Iterator[tuple[tuple[str, int], CaseResult]]:
    """Try the cases one by one in a process; if it hangs or dies, start another for the rest."""
    left = list(which)
    while left:
        with environment():
            ours, theirs = server().Pipe()
            language = any(kind in LANGUAGE_KINDS for kind, _ in left)
            worker = server().Process(
                target=_serve, args=(theirs, str(folder), language), daemon=True
            )
            worker.start()
        theirs.close()
        ours.recv()  # it is ready: the time to load libraries does not count
        while left:
            case = left.pop(0)
            ours.send(case)
            if not ours.poll(patience):
                yield case, CaseResult(None, "", f"a hang: no end within {patience:g} s", [])
                break
            try:
                yield case, ours.recv()
            except EOFError:
                worker.join()
                yield case, CaseResult(None, "", f"the process died with {worker.exitcode}", [])
                break
        worker.kill()
        worker.join()


def _serve(pipe: Connection, folder: str, language: bool) -> None:
    """Try cases in the worker process until the pipe is closed; some need the language libraries."""
    from cobo_dist.tasks.language.libraries import library

    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # libraries may print from C
        os.dup2(null, number)
    if language:
        library("transformers")
    loaded = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    sound = Path(tempfile.mkdtemp(dir=folder))
    os.environ["HOME"] = str(sound)  # a run folder may be called ~
    os.chdir(sound)
    _call(files.sound_run(sound))
    pipe.send("ready")
    limited = False
    try:
        while True:
            kind, seed = pipe.recv()
            if not limited:
                resource.setrlimit(
                    resource.RLIMIT_AS, (loaded + MEMORY_BYTES, loaded + MEMORY_BYTES)
                )
                limited = True
            pipe.send(_case(kind, seed, Path(folder), sound))
    except EOFError:
        return


def _case(kind: str, seed: int, folder: Path, sound: Path) -> CaseResult:
    """Make a case in a folder of its own, try it, and remove the folder."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        os.chdir(place)
        if kind in ("checkpoint", "folder"):
            shutil.copytree(sound / "run", "run")
        given = KINDS[kind](random.Random(f"{kind} {seed}"), place)
        if not any(argument.startswith("run.dir=") for argument in given):
            given.append("run.dir=out")
        began = time.monotonic()
        code, out, err = _call(given)
        # What runs in a case writes into this folder; a hostile one may be too deep to search.
        executed = Path("EXECUTED").exists() or (kind != "folder" and any(folder.rglob("EXECUTED")))
        touched = folders.touched(place) if kind == "folder" else ""
        return CaseResult(
            code, out, err, given, Path("out").exists(), executed, touched, time.monotonic() - began
        )
    finally:
        os.chdir(folder)
        with suppress(OSError):
            remove_tree(place)


def _call(given: list[str]) -> tuple[int | None, str, str]:
    """Call the command's main function; an exception that escapes is a complaint."""
    from cobo_dist.cli.train import main

    out, err = StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code: int | None = main(given)
    except BaseException as error:
        return None, out.getvalue(), f"{type(error).__name__} escaped: {error}"
    return code, out.getvalue(), err.getvalue()
