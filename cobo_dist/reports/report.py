"""Puts a report together: which tables, figures and sections there are, and in which folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cobo_dist.reports import figures
from cobo_dist.reports.grouping.problems import Problem
from cobo_dist.reports.page.render import Section, write_page
from cobo_dist.reports.page.weights_slider import make_slider
from cobo_dist.reports.selection import by_method, learning, representatives
from cobo_dist.reports.selection import without_sampling_variants as without_variants
from cobo_dist.reports.tables.paper_tables import table_1, table_2
from cobo_dist.reports.tables.results import NOTE, results_table, write_results_csv
from cobo_dist.reports.tables.rounds_to_target import reached_table
from cobo_dist.reports.tables.scores import Row, make_rows
from cobo_dist.reports.tables.table import Table, write_markdown
from cobo_dist.reports.writing import make_folder, slug, write_csv

Results = Mapping[Problem, Sequence[Row]]


class Report:
    """The report on some problems. Tables come first, for the terminal; `write` makes the files.

    Args:
        problems: all groups, each task's main problem first.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.results: Results = {problem: make_rows(problem) for problem in problems}
        # Without the sampling variants CoBo is one method among the others again.
        self.methods: Results = {one: make_rows(one) for one in without_variants(problems)}
        self.tables = {one: results_table(one, rows) for one, rows in self.results.items()}
        self.paper_1 = table_1(self.results)
        self.paper_2 = table_2(self.methods)

    def all_tables(self) -> list[Table]:
        """Every table of final results."""
        paper = [*self.paper_1, *([self.paper_2] if self.paper_2 else [])]
        return [*self.tables.values(), *paper]

    def write(self, out: Path, figure_1: bool) -> list[Path]:
        """Write tables, figures and the page into a folder. Returns the files, in order."""
        files = [write_markdown(out / "table.md", "Results", list(self.tables.values()), NOTE)]
        files.append(write_results_csv(out / "table.csv", self.results))
        files += _write_table(out / "table1", "Table 1", self.paper_1)
        files += _write_table(out / "table2", "Table 2", [self.paper_2] if self.paper_2 else [])
        first = Section("All problems", [*self.paper_1, *([self.paper_2] if self.paper_2 else [])])
        if figure_1:
            first.figures = figures.draw_selection(out / "figure1.png")
        sections = [first] if first.tables or first.figures else []
        files += first.figures
        for shown, (full, rows) in zip(self.methods, self.results.items(), strict=True):
            place = self._place(full, out)
            section = Section(full.label, [self.tables[full]], [NOTE])
            files += self._draw(section, shown, full, rows, place)
            sections.append(section)
        files.append(write_page(out / "index.html", sections))
        return files

    def _place(self, problem: Problem, out: Path) -> Path:
        """A folder for each task where there are several, below it one for each lesser problem."""
        if len({other.task for other in self.results}) > 1:
            out = out / slug(problem.task)
        if not problem.main:
            out = out / slug(problem.label.removeprefix(problem.task))
        return make_folder(out)

    def _draw(
        self, section: Section, shown: Problem, full: Problem, rows: Sequence[Row], place: Path
    ) -> list[Path]:
        """Draw a problem's figures into its section; all but the main problem's are folded away."""
        chosen = representatives(shown)
        compared = figures.draw_over_rounds(chosen, place)
        if not full.main:
            section.folded = compared
            return compared
        task = {one: own for one, own in self.methods.items() if one.task == full.task}
        section.notes += figures.left_out(chosen)
        section.figures = [*figures.draw_factors(task, place / "factors.png"), *compared]
        for family in by_method(full):
            shown_too = sum(group.algorithm == family[0].algorithm for group in chosen)
            if shown_too < len(family):
                section.figures += figures.draw_settings(family, place)
        section.folded = figures.draw_single(chosen, place)
        if sum(len(group.runs) for group in full.groups) == 1:
            section.figures, section.folded = section.figures + section.folded, []
        section.slider = make_slider(learning(full.groups), slug(full.task))
        files = [*section.figures, *section.folded]
        if reached := reached_table(full.groups, f"Rounds to reach, {full.label}"):
            section.tables.append(reached)
            files += _write_table(place / "reached", "Rounds to reach", [reached])
        return files


def _write_table(path: Path, title: str, tables: Sequence[Table]) -> list[Path]:
    """Write tables as Markdown and their numbers as one CSV; nothing where there is none."""
    if not tables:
        return []
    header = max((table.csv_header for table in tables), key=len)
    lines = [
        dict(zip(table.csv_header, row, strict=True)) for table in tables for row in table.csv_rows
    ]
    rows = [[line.get(name) for name in header] for line in lines]
    return [
        write_markdown(path.with_suffix(".md"), title, tables),
        write_csv(path.with_suffix(".csv"), header, rows),
    ]
