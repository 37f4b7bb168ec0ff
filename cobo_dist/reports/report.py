"""Builds a report: decides which tables, figures and sections it has, and writes its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cobo_dist.reports import figures
from cobo_dist.reports.grouping import Problem
from cobo_dist.reports.grouping.groups import by_algorithm, length_note
from cobo_dist.reports.page import Section, make_slider, write_page
from cobo_dist.reports.selection import learning, representatives, without_sampling_variants
from cobo_dist.reports.tables.drift import drift_table
from cobo_dist.reports.tables.paper_tables import Results, table_1, table_2
from cobo_dist.reports.tables.results import NOTE, results_table, write_results_csv
from cobo_dist.reports.tables.rounds_to_target import rounds_to_target_table
from cobo_dist.reports.tables.scores import group_results
from cobo_dist.reports.tables.table import Table, write_markdown
from cobo_dist.reports.words import learned_in_words
from cobo_dist.reports.writing import make_folder, slug, write_csv


class Report:
    """The report on some problems. The constructor makes the tables; `write` writes the files.

    Args:
        problems: all groups, each task's main problem first.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.results: Results = {problem: group_results(problem) for problem in problems}
        # Without the sampling variants CoBo is one method among the others again.
        self.methods: Results = {
            problem: group_results(problem) for problem in without_sampling_variants(problems)
        }
        self.tables = {
            problem: results_table(problem, own) for problem, own in self.results.items()
        }
        self.table_1 = table_1(self.results)
        table = table_2(self.methods)
        self.table_2 = [] if table is None else [table]
        # What the methods of each task's main problem have learned, in sentences.
        self.learned = {
            problem.label: words
            for problem, own in self.methods.items()
            if problem.main and (words := learned_in_words(own))
        }

    def all_tables(self) -> list[Table]:
        """Every table of final results."""
        return [*self.tables.values(), *self.table_1, *self.table_2]

    def write(self, out: Path, figure_1: bool) -> list[Path]:
        """Write tables, figures and the page into a folder. Returns the files, in order."""
        files = [write_markdown(out / "table.md", "Results", list(self.tables.values()), NOTE)]
        files.append(write_results_csv(out / "table.csv", self.results))
        files += _write_table(out / "table1", "Table 1", self.table_1)
        files += _write_table(out / "table2", "Table 2", self.table_2)
        first = Section("All problems", [*self.table_1, *self.table_2])
        if figure_1:
            first.figures = figures.draw_client_selection(out / "figure1.png")
        sections = [first] if first.tables or first.figures else []
        files += first.figures
        for shown, problem in zip(self.methods, self.results, strict=True):
            section = Section(problem.label, [self.tables[problem]], [NOTE])
            files += self._draw(section, shown, problem, self._folder(problem, out))
            sections.append(section)
        files.append(write_page(out / "index.html", sections))
        return files

    def _folder(self, problem: Problem, out: Path) -> Path:
        """A folder for each task if there are several, and in it one for each problem but the main one."""
        if len({other.task for other in self.results}) > 1:
            out = out / slug(problem.task)
        if not problem.main:
            out = out / slug(problem.label.removeprefix(problem.task))
        return make_folder(out)

    def _draw(self, section: Section, shown: Problem, problem: Problem, out: Path) -> list[Path]:
        """Draw a problem's figures into its section, and return the files.

        `shown` is the problem without sampling variants. The figures of a problem that is not the main one
        are folded.
        """
        section.notes = [*self.learned.get(problem.label, []), *section.notes]
        chosen = representatives(shown)
        compared = figures.draw_over_rounds(chosen, out)
        if not problem.main:
            section.folded = compared
            return compared
        task = {one: own for one, own in self.methods.items() if one.task == problem.task}
        section.notes += figures.left_out(chosen)
        factors = figures.draw_factors(task, out / "factors.png")
        if factors and (note := length_note(group for one in task for group in one.groups)):
            section.notes.append(f"Warning, final values against a factor: {note}.")
        section.figures = [*factors, *compared]
        for algorithm, family in by_algorithm(problem.groups).items():
            if sum(group.algorithm == algorithm for group in chosen) < len(family):
                section.figures += figures.draw_settings(family, out)
        section.folded = figures.draw_single(chosen, out)
        if sum(len(group.runs) for group in problem.groups) == 1:
            section.figures, section.folded = section.figures + section.folded, []
        section.slider = make_slider(learning(problem.groups), slug(problem.task))
        files = [*section.figures, *section.folded]
        if table := drift_table(problem.groups, f"After clients changed cluster, {problem.label}"):
            section.tables.append(table)
            files += _write_table(out / "drift", "After clients changed cluster", [table])
        caption = f"Rounds to reach, {problem.label}"
        if table := rounds_to_target_table(problem.groups, caption):
            section.tables.append(table)
            files += _write_table(out / "reached", "Rounds to reach", [table])
        return files


def _write_table(path: Path, title: str, tables: Sequence[Table]) -> list[Path]:
    """Write tables as Markdown and their numbers as one CSV; nothing if there is no table."""
    numbers = [table.numbers for table in tables if table.numbers is not None]
    if not numbers:
        return []
    columns = max((list(frame.columns) for frame in numbers), key=len)
    joined = pd.concat([frame.reindex(columns=columns, fill_value="") for frame in numbers])
    return [
        write_markdown(path.with_suffix(".md"), title, tables),
        write_csv(path.with_suffix(".csv"), joined),
    ]
