"""`python -m cobo_dist.report RUN_DIR... [--out DIR]`: run folders in, tables and figures out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from cobo_dist.errors import EXIT_DONE, EXIT_REFUSED, Refusal
from cobo_dist.reports.grouping import group_runs
from cobo_dist.reports.page import write_page
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.table import make_rows, print_tables, write_markdown, write_table_csv
from cobo_dist.reports.writing import make_folder, slug

_EPILOG = """
files written:
  table.md, table.csv        final results, mean ± std over seeds
  accuracy.png, loss.png     test metrics against rounds, one line per method
                             (perplexity.png for language)
  weights*.png               collaboration weights of each run; weights_all.png: all methods
  graph*.png                 how the links form: weights, components, alignment
  decay.png                  task quadratic: the quantities of Theorem 1
  index.html                 all of it on one page that needs no other file
Beside each PNG lies a CSV with the numbers it shows.

Runs that differ only in their seed become one row and one line. Runs of several tasks
get one table each, and figures in a folder each. An unfinished run is reported as such.

exit codes: 0 done; 2 refused (a folder that is no run, a malformed file), with one line why

example:
  python -m cobo_dist.report runs/digits-*-s* --out report
"""


def main(argv: list[str] | None = None) -> int:
    """Make the report. Returns 0, or 2 after one line on standard error."""
    arguments = _parser().parse_args(argv)
    try:
        _report(arguments.runs, arguments.out)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_DONE


def _report(folders: list[Path], out: Path | None) -> None:
    if out is None:
        out = folders[0] / "figures" if len(folders) == 1 else Path("report")
    elif out.exists() and not out.is_dir():
        raise Refusal(f"--out {out} is a file, not a folder; give another --out")
    # The same folder may come twice, from two patterns of the shell.
    unique = {folder.resolve(): folder for folder in folders}
    runs = [read_run(folder) for folder in unique.values()]
    tasks, notes = group_runs(runs)
    tables = {task: make_rows(groups) for task, groups in tasks.items()}
    make_folder(out)
    for note in (*(note for run in runs for note in run.notes), *notes):
        print(f"warning: {note}", file=sys.stderr)
    console = Console(width=None if sys.stdout.isatty() else 120)
    print_tables(tables, console)

    # Loading matplotlib takes a second: what is refused is refused before it.
    from cobo_dist.reports.figures import draw_task

    try:
        files = [write_markdown(out / "table.md", tables)]
        files.append(write_table_csv(out / "table.csv", tables))
        figures: dict[str, list[Path]] = {}
        for task, groups in tasks.items():
            place = out if len(tasks) == 1 else make_folder(out / slug(task))
            figures[task] = draw_task(groups, place)
            files += figures[task]
        files.append(write_page(out / "index.html", tables, figures))
    except OSError as error:
        where = error.filename or out
        raise Refusal(f"{where} cannot be written: {error.strerror}; give another --out") from None
    _list_files(out, files)


def _list_files(out: Path, files: list[Path]) -> None:
    """Print what was written, a figure and its CSV on one line."""
    names: dict[Path, list[str]] = {}
    for file in files:
        names.setdefault(file.with_suffix(""), []).append(str(file.relative_to(out)))
    print(f"written to {out}:", *(f"  {', '.join(line)}" for line in names.values()), sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cobo_dist.report",
        description="Turn run folders into tables and figures.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: RUN_DIR/figures for one run, ./report for several)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
