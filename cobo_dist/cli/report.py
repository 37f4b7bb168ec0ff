"""`python -m cobo_dist.report RUN_DIR... [--out DIR]`: make tables, figures and a page of run folders."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from cobo_dist.cli.parser import CommandParser, report_error
from cobo_dist.errors import EXIT_DONE, ConfigError
from cobo_dist.reports.look import FORMATS, LOOKS, use_look
from cobo_dist.terminal import open_console, safe_terminal

USAGE = "RUN_DIR... [--out DIR] [--style S] [--formats F] [--columns N] [--figure-1]"
ABOUT = """\
Turn run folders into tables (Markdown, CSV and LaTeX), figures (each with its numbers as CSV) and one page,
index.html, that needs no other file. Runs that differ only in their seed share a row and a line. The last
lines say in words which clients collaborate and, with a run of Local beside, who does better than alone.
--help all lists the files."""
MORE = """\
files written:
  table.md, .csv, .tex       final results of every problem, mean over seeds ± half the width of its
                             95% confidence interval
  table1.md, .csv, .tex      sampling strategies of CoBo, where runs differ in them (Table 1)
  table2.md, .csv, .tex      all methods on all tasks (Table 2)
  reached.md, .csv, .tex     rounds to reach fixed accuracies
  significance.md, .csv, .tex
                             whether methods differ: paired tests over seeds and over clients
  clients.md, .csv, .tex     worst 10% of clients, Jain's index, clients that do worse than alone
  accuracy.png, loss.png     test metrics against rounds, one line per method
                             (perplexity.png for language; Figures 2b and 6)
  accuracy_METHOD.png        all settings of a method of which the other figures show only one
  factors.png                final accuracy against the fraction of the data, the clusters, the
                             clients in a cluster, where runs differ in them (Figure 2a)
  traffic.png                final accuracy against the MB that a client sends and receives
  ranks.png                  mean ranks over data sets and seeds with the critical difference
  weights_all.png            W of the methods that learn it (Figure 3)
  weights*.png               W of each of their runs (Figure 5); of many, of each first seed
  shares*.png                the weights that each client gives the others over the rounds,
                             smoothed, where they sum to 1; up to 12 clients (Figure 4)
  graph*.png                 how the links form: weights, components, alignment
  groups.md, .csv, .tex      the groups of clients that W shows, run by run
  members.md, .csv, .tex     who is in them, of the runs whose graph is drawn
  network*.png               the graph as a network; of one run of three methods at most
  tree*.png                  W in a seriated order, with its dendrogram
  map*.png                   clients in the plane: saved models by principal components, W by
                             spectral embedding
  stability*.png             how links and groups change from snapshot to snapshot
  profile.png                where a round's time goes on each rank, of runs with log.profile=true
  gpus.png                   busy share, memory and power of the ranks' GPUs, of runs on GPUs
  decay.png                  task quadratic: the quantities of Theorem 1
  figure1.png                with --figure-1: how client selection decides on a pair (Figure 1)
  figures.tex                with PDFs: includes all figures, with captions
  index.html                 all of this on one page that needs no other file: W with a slider over its
                             snapshots, curves that tell their values, each client with its partners over
                             time, tables that sort
Each PNG has a CSV of the same name with the numbers it shows. Of several tables, each has a .tex file.

--style paper and talk make figures one or two columns wide (3.3 and 6.9 inches with letters of 7 and 8
points; 3.9 and 6.0 with 10 and 11), and write PDF and SVG beside PNG.

Runs that differ only in their seed share a row and a line. If there are several tasks, each
has a folder for its figures. If runs of one task differ in its settings (task.*), each set of
settings is a problem with its own table. The problem with most methods is the main one: Table 2
and the figures over rounds show it. A run that has not finished is marked as unfinished."""
EPILOG = """\
examples:
  python -m cobo_dist.report runs/digits-*-s* --out report
  python -m cobo_dist.report runs/digits-*-s* --out report --style paper --formats pdf
  python -m cobo_dist.report --figure-1 --out report

exit codes: 0 done; 2 refused (not a run folder, a malformed file), with the reason on one line"""


@safe_terminal()
def main(argv: Sequence[str] | None = None) -> int:
    """Make the report. Returns 0, or 2 after one line on standard error."""
    try:
        parser = _parser()
        options = parser.read(argv)
        if options is not None:
            runs = parser.paths(options)
            _check_look(options)
            if not runs and not options.figure_1:
                raise ConfigError("no run folder is given; give RUN_DIR... or --figure-1")
            _report(runs, options)
    except ConfigError as refusal:
        return report_error(refusal)
    return EXIT_DONE


def _check_look(options: Namespace) -> None:
    unknown = [name for name in options.formats or () if name not in FORMATS]
    if unknown:
        raise ConfigError(
            f"--formats {unknown[0]} is no format of figures; give {', '.join(FORMATS)} or some of them, and "
            "run folders before --formats"
        )
    if options.columns is not None and LOOKS[options.style].widths is None:
        raise ConfigError(
            f"--columns {options.columns} does nothing with --style {options.style}, whose figures are as "
            "wide as they need; add --style paper or --style talk"
        )


def _report(folders: list[Path], options: Namespace) -> None:
    # Imports are here because they take time: --help needs none of them, a refusal only the first two.
    from cobo_dist.reports.grouping import group_runs
    from cobo_dist.reports.reading import read_run

    out = options.out
    if out is None:
        out = folders[0] / "figures" if len(folders) == 1 else Path("report")
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file, not a folder; give another --out")
    # Two patterns of the shell may give the same folder twice.
    unique = {folder.resolve(): folder for folder in folders}
    runs = [read_run(folder) for folder in unique.values()]
    problems, notes = group_runs(runs)

    from cobo_dist.reports.figures import draw_client_selection
    from cobo_dist.reports.report import Report
    from cobo_dist.reports.tables.table import print_table
    from cobo_dist.reports.writing import make_folder

    make_folder(out)
    for note in (*(note for run in runs for note in run.notes), *notes):
        print(f"warning: {note}", file=sys.stderr)
    report = Report(problems) if problems else None
    try:
        with use_look(options.style, options.formats, options.columns):
            if report:
                files = report.write(out, options.figure_1)
            else:
                files = draw_client_selection(out / "figure1.png")
    except OSError as error:
        where = error.filename or out
        raise ConfigError(
            f"{where} cannot be written: {error.strerror}; give another --out"
        ) from None
    console = open_console(plain_width=140)
    for table in report.all_tables() if report else ():
        print_table(table, console)
    _list_files(out, files)
    if report:
        _print_learned(report.learned, out)


def _print_learned(learned: Mapping[str, Sequence[str]], out: Path) -> None:
    """Print what runs have learned, by task, and which file to open."""
    if learned:
        print("", "What was learned", sep="\n")
    for task, sentences in learned.items():
        name = f"{task}: " if len(learned) > 1 else ""
        print(*(f"  {name}{sentence}" for sentence in sentences), sep="\n")
    print(f"open {out / 'index.html'}")


def _list_files(out: Path, files: list[Path]) -> None:
    """Print what was written, a figure and its CSV on one line."""
    names: dict[Path, list[str]] = {}
    for file in files:
        names.setdefault(file.relative_to(out).with_suffix(""), []).append(file.suffix)
    lines = (f"  {name}{', '.join(suffixes)}" for name, suffixes in names.items())
    print(f"written to {out}:", *lines, sep="\n")


def _parser() -> CommandParser:
    parser = CommandParser("report", ABOUT, EPILOG, USAGE, MORE)
    where = "where to write (default: RUN_DIR/figures for one run, ./report for several)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=where)
    names = list(LOOKS)
    what = f"figures for {', '.join(names[:-1])} or {names[-1]} (default: {names[0]})"
    parser.add_argument("--style", choices=names, default=names[0], metavar="S", help=what)
    what = f"of figures: {' '.join(FORMATS)} (default: png; for paper and talk all three)"
    parser.add_argument("--formats", nargs="+", metavar="F", help=what)
    what = "make all figures 1 or 2 columns wide (default: each as it needs); for paper and talk"
    parser.add_argument("--columns", type=int, choices=(1, 2), metavar="N", help=what)
    what = "draw the paper's Figure 1 too; needs no run folder"
    parser.add_argument("--figure-1", action="store_true", help=what)
    return parser
