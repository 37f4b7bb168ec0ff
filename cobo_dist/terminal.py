"""Standard output and error: a run does not depend on who reads them.

Only this module handles errors of the terminal. A reader that leaves (`| head -1`), a full disk behind
`> FILE` and a closed stream (`>&-`) end the output and nothing else. Ranks share a terminal, so a line is
handed over whole.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console

_STANDARD_STREAMS = 3  # input, output, error: file descriptors 0, 1, 2


class SafeStream:
    """A text stream of whole lines that never raises: after the first error it drops what is written.

    Python of torchrun's workers (`-u`) writes the parts of a `print` one by one, and parts of two ranks mix.
    A line that has not ended waits for its end or for `flush`.

    >>> stream = SafeStream(None)
    >>> stream.write("nobody reads this")
    17
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Write to `stream`; None is a stream that was closed before Python started."""
        self._stream = stream
        self._lost = stream is None
        self._line = ""  # a line's beginning

    def write(self, text: str) -> int:
        """Write the text, with escapes for what the stream's encoding lacks; return its length."""
        lines, end, self._line = (self._line + text).rpartition("\n")
        self._hand_over(lines + end)
        return len(text)

    def flush(self) -> None:
        """Hand over what is written."""
        begun, self._line = self._line, ""
        self._hand_over(begun, flush=True)

    def _hand_over(self, text: str, flush: bool = False) -> None:
        """Write the text to the stream in one call."""
        if self._lost:
            return
        stream = cast("TextIO", self._stream)
        try:
            if text:
                stream.write(_encodable(text, stream.encoding or "utf-8"))
            if flush:
                stream.flush()
        except BlockingIOError:
            pass  # a reader who is slow for now; later text may arrive
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._lose()

    def isatty(self) -> bool:
        """Return whether a person sees the text."""
        return not self._lost and not self.closed and cast("TextIO", self._stream).isatty()

    @property
    def closed(self) -> bool:
        """Whether there is no open stream."""
        return self._stream is None or self._stream.closed

    @property
    def encoding(self) -> str:
        """Encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self) -> None:
        """Drop all further text, and what the stream still keeps for its last flush as Python exits."""
        self._lost = True
        with suppress(OSError, ValueError):  # a stream without a file keeps nothing
            descriptor = cast("TextIO", self._stream).fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _encodable(text: str, encoding: str) -> str:
    r"""Return the text with escapes for characters that the encoding lacks.

    >>> _encodable("0.5 ± 0.1", "ascii")
    '0.5 \\xb1 0.1'
    """
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def safe_terminal() -> Iterator[None]:
    """Keep errors of standard output and error away from a command; also a decorator of its `main`."""
    _open_missing()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", SafeStream(stream)) for stream in before)
    try:
        yield
    finally:
        flush()
        sys.stdout, sys.stderr = before


def flush() -> None:
    """Hand over what was written to standard output and error."""
    for stream in (sys.stdout, sys.stderr):
        (stream if isinstance(stream, SafeStream) else SafeStream(stream)).flush()


def _open_missing() -> None:
    """Open what is closed of file descriptors 0, 1 and 2.

    The next file opened would get its number, and a library that prints would write into that file.
    """
    for descriptor in range(_STANDARD_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def is_terminal() -> bool:
    """Return whether a person sees standard output."""
    return SafeStream(sys.stdout).isatty()


def open_console(plain_width: int | None = None) -> Console:
    """Return a console on standard output, which prints text as it is: brackets are no markup.

    `plain_width` is the width where output goes to a file or pipe. With `NO_COLOR` set there are neither
    colors nor bold text.
    """
    return Console(
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        width=None if is_terminal() else plain_width,
        markup=False,
        emoji=False,
        highlight=False,
    )
