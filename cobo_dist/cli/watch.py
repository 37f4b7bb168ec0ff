"""`python -m cobo_dist.watch RUN... [--serve]`: follow runs that go on, on a terminal or in a browser."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from cobo_dist.cli.parser import CommandParser, report_error
from cobo_dist.errors import EXIT_BY_SIGNAL, EXIT_DONE, EXIT_FAILED, ConfigError
from cobo_dist.terminal import is_terminal, open_console, safe_terminal
from cobo_dist.watching.watch_list import WatchList

USAGE = "RUN... [--serve [--host HOST] [--port PORT] [--token]] [--interval SECONDS]"
ABOUT = """\
Follow runs while they go on. RUN is a run folder, which may not exist yet, or a folder of runs, such as a
sweep's --out. The folders are only read, so a run on a cluster is watched through its shared folder. Without
--serve the runs are shown on the terminal until they have ended; where output goes to a file, a line a run is
printed now and then. With --serve a browser shows the report's page, which follows the runs."""
EPILOG = """\
examples:
  python -m cobo_dist.watch runs/digits-cobo-s0
  python -m cobo_dist.watch runs/sweep --serve
  ssh -L 8000:localhost:8000 LOGIN_HOST python -m cobo_dist.watch RUN --serve --port 8000

exit codes: 0 all runs are done; 1 a run failed or was stopped; 2 refused, with the reason on one line;
130 ended by Ctrl-C"""

_VIEW_SECONDS = 1.0


@safe_terminal()
def main(argv: Sequence[str] | None = None) -> int:
    """Follow the runs; return the exit code."""
    try:
        parser = _parser()
        options = parser.read(argv)
        if options is None:
            return EXIT_DONE
        paths = parser.paths(options)
        if not paths:
            raise ConfigError("no run folder is given; give RUN...")
        if not options.interval > 0:
            raise ConfigError(f"--interval is {options.interval:g}; give more than 0 seconds")
        watched = WatchList(paths)
        if options.serve:
            return _serve(watched, options.host, options.port, options.token)
        if (options.host, options.port, options.token) != (None, 0, False):
            raise ConfigError("--host, --port and --token are for --serve; add it")
        return _show(watched) if is_terminal() else _print_lines(watched, options.interval)
    except ConfigError as refusal:
        return report_error(refusal)
    except KeyboardInterrupt:
        return EXIT_BY_SIGNAL + signal.SIGINT


def _show(watched: WatchList) -> int:
    """Show the runs on the terminal until they have ended."""
    from rich.live import Live

    from cobo_dist.watching.terminal_view import view

    console = open_console()
    watched.poll()
    with Live(view(watched.runs, console), console=console, auto_refresh=False) as live:
        while not watched.has_ended:
            time.sleep(_VIEW_SECONDS)
            watched.poll()
            live.update(view(watched.runs, console), refresh=True)
    return _code(watched)


def _print_lines(watched: WatchList, interval: float) -> int:
    """Print a line a run every `interval` seconds where it has changed, and at its end."""
    from cobo_dist.watching.terminal_view import line

    printed: dict[object, str] = {}
    due: dict[object, float] = {}
    while True:
        watched.poll()
        now = time.monotonic()
        for run in watched.runs:
            text = line(run)
            if text != printed.get(run.path) and (run.has_ended or now >= due.get(run.path, now)):
                print(text, flush=True)
                printed[run.path], due[run.path] = text, now + interval
        if watched.has_ended:
            return _code(watched)
        time.sleep(min(_VIEW_SECONDS, interval))


def _serve(watched: WatchList, host: str | None, port: int, with_token: bool) -> int:
    """Serve the page until Ctrl-C."""
    from cobo_dist.watching.live_page import LivePage
    from cobo_dist.watching.server import Server

    server = Server(LivePage(watched), host or "127.0.0.1", port, with_token)
    print(f"open {server.url} (Ctrl-C ends it)", flush=True)
    if not server.is_local:
        print("the connection is not encrypted; a tunnel of ssh to a local address is", flush=True)
    with server:
        server.serve_forever()
    return EXIT_DONE


def _code(watched: WatchList) -> int:
    return EXIT_DONE if all(run.state == "done" for run in watched.runs) else EXIT_FAILED


def _parser() -> CommandParser:
    parser = CommandParser("watch", ABOUT, EPILOG, USAGE)
    parser.add_argument("--serve", action="store_true", help="show the runs in a browser")
    where = "address to listen at (default: 127.0.0.1); any other than a local one asks for a token"
    parser.add_argument("--host", metavar="HOST", help=where)
    parser.add_argument(
        "--port",
        type=int,
        default=0,
        metavar="PORT",
        help="port to listen at (default: a free one)",
    )
    asks = "ask for a token on a local address too: on a host that others use, they reach it"
    parser.add_argument("--token", action="store_true", help=asks)
    often = "seconds between lines of a run without a terminal (default: 10)"
    parser.add_argument("--interval", type=float, default=10.0, metavar="SECONDS", help=often)
    return parser
