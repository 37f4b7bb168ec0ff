"""Builds a report: decides which tables, figures and sections it has, and writes its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cobo_dist.reports import figures
from cobo_dist.reports.captions import Caption, about, sentence, write_figures_tex
from cobo_dist.reports.comparison import critical_difference, ranks
from cobo_dist.reports.graph_part import draw_graphs, graph_entries
from cobo_dist.reports.grouping import Problem
from cobo_dist.reports.grouping.groups import by_algorithm, length_note
from cobo_dist.reports.look import current_look
from cobo_dist.reports.metrics import last_value
from cobo_dist.reports.page import Section, caption_of, make_explorer, write_page
from cobo_dist.reports.selection import representatives, without_sampling_variants
from cobo_dist.reports.tables.clients import clients_table
from cobo_dist.reports.tables.drift import drift_table
from cobo_dist.reports.tables.groups import groups_table, members_table
from cobo_dist.reports.tables.latex import write_latex
from cobo_dist.reports.tables.paper_tables import Results, table_1, table_2
from cobo_dist.reports.tables.results import NOTE, results_table, write_results_csv
from cobo_dist.reports.tables.rounds_to_target import rounds_to_target_table
from cobo_dist.reports.tables.scores import group_results
from cobo_dist.reports.tables.significance import significance_table
from cobo_dist.reports.tables.table import Table, write_markdown
from cobo_dist.reports.words import learned_in_words
from cobo_dist.reports.writing import make_folder, slug, write_csv
from cobo_dist.storage.schema import higher_is_better

_LEAST_BLOCKS = 5
"""Data sets x seeds from which on methods are ranked."""


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
            problem: replace(results_table(problem, own), about=about(problem.groups))
            for problem, own in self.results.items()
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
        tables = list(self.tables.values())
        files = [write_markdown(out / "table.md", "Results", tables, NOTE)]
        files.append(write_results_csv(out / "table.csv", self.results))
        files += write_latex(out / "table.tex", tables, NOTE)
        files += _write_table(out / "table1", "Table 1", self.table_1)
        files += _write_table(out / "table2", "Table 2", self.table_2)
        first = Section("All problems", [*self.table_1, *self.table_2])
        if figure_1:
            first.figures = figures.draw_client_selection(out / "figure1.png")
        self._rank(first, out)
        files += first.figures
        sections: list[Section] = []
        for section, shown, problem in zip(
            self.sections(), self.methods, self.results, strict=True
        ):
            folder = self._folder(problem, out)
            files += self._draw(section, shown, problem, folder)
            sections.append(section)
            if problem.main:
                part, written = self._graph(shown, problem, folder)
                sections += part
                files += written
        # The page begins with W, so what all problems have in common comes last.
        sections += [first] if first.tables or first.figures else []
        if "pdf" in current_look().formats:
            files.append(self._write_figures_tex(out / "figures.tex", sections))
        files.append(write_page(out / "index.html", sections))
        return files

    def sections(self) -> list[Section]:
        """Return a section for each problem, with its explorer and its table of final results."""
        return [
            Section(
                problem.label,
                [self.tables[problem]],
                [
                    *self.learned.get(problem.label, []),
                    sentence(about(problem.groups)),
                    NOTE,
                ],
                explorer=make_explorer(
                    representatives(shown), problem.groups, f"explorer-{number}"
                ),
                is_folded=not problem.main,
            )
            for number, (shown, problem) in enumerate(
                zip(self.methods, self.results, strict=True), start=1
            )
        ]

    def _rank(self, section: Section, out: Path) -> None:
        """Draw the ranks of the methods over data sets and seeds, where they can differ at all."""
        mains = {problem: own for problem, own in self.methods.items() if problem.main}
        scores: dict[object, dict[str, float]] = {}
        for problem, own in mains.items():
            chosen = representatives(problem)
            for one in own:
                for run in one.group.scored if one.group in chosen else ():
                    value = last_value(run, one.split, one.metric)
                    if value is not None and value == value:
                        sign = 1.0 if higher_is_better(one.metric) else -1.0
                        of_block = scores.setdefault((problem.label, run.seed), {})
                        of_block[one.group.title] = sign * value
        compared = ranks(scores)
        blocks, count = compared.shape
        if blocks < _LEAST_BLOCKS or count < 3 or critical_difference(count, blocks) > count - 1:
            return
        groups = [one.group for own in mains.values() for one in own]
        colors = {group.title: group.method.color for group in groups}
        metrics = {own[0].metric for own in mains.values()}
        score = metrics.pop() if len(metrics) == 1 else "the metric of each task"
        section.figures += figures.draw_ranks(compared, colors, out / "ranks.png", score)
        section.notes.append(figures.rank_note(compared))

    def _write_figures_tex(self, path: Path, sections: Sequence[Section]) -> Path:
        """Write the figures of all sections with their captions, for a paper."""
        every = about(group for problem in self.results for group in problem.groups)
        runs = {problem.label: about(problem.groups) for problem in self.results}
        captions: list[Caption] = [
            (file, caption_of(file), "" if file.stem == "figure1" else runs.get(one.title, every))
            for one in sections
            for file in (*one.figures, *one.folded)
            if file.suffix == ".png"
        ]
        wide = [file for file, _, _ in captions if figures.is_wide(file)]
        return write_figures_tex(path, captions, wide)

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
        chosen = representatives(shown)
        compared = figures.draw_over_rounds(chosen, out)
        if not problem.main:
            section.folded = compared
            return compared
        task = {one: own for one, own in self.methods.items() if one.task == problem.task}
        section.notes += figures.weights_notes(chosen)
        factors = figures.draw_factors(task, out / "factors.png")
        if factors and (note := length_note(group for one in task for group in one.groups)):
            section.notes.append(f"Warning, final values against a factor: {note}.")
        compared += figures.draw_traffic(self.methods[shown], chosen, out / "traffic.png")
        section.figures = [*factors, *compared]
        for algorithm, family in by_algorithm(problem.groups).items():
            if sum(group.algorithm == algorithm for group in chosen) < len(family):
                section.figures += figures.draw_settings(family, out)
        section.folded = figures.draw_single(chosen, out)
        if sum(len(group.runs) for group in problem.groups) == 1:
            section.figures, section.folded = section.figures + section.folded, []
        files = [*section.figures, *section.folded]
        results, groups = self.methods[shown], problem.groups
        tables = {
            "drift": drift_table(groups),
            "reached": rounds_to_target_table(groups),
            "significance": significance_table(results, chosen),
            "clients": clients_table(results),
        }
        for name, table in tables.items():
            if table is not None:
                caption = f"{table.caption}, {problem.label}"
                named = replace(table, caption=caption, about=about(groups))
                section.tables.append(named)
                files += _write_table(out / name, table.caption, [named])
        return files

    def _graph(
        self, shown: Problem, problem: Problem, out: Path
    ) -> tuple[list[Section], list[Path]]:
        """Make the section on the graph, if some run has one; return it and the files."""
        entries = graph_entries(representatives(shown))
        if not entries:
            return [], []
        title = f"The graph, {problem.label}"
        single = sum(len(group.runs) for group in problem.groups) == 1
        drawn, figures_, notes = draw_graphs(entries, out, single)
        found = groups_table(entries, f"Groups found, {problem.label}")
        found = replace(found, about=about(entry.group for entry in entries))
        members = [
            members_table(entry, f"Groups of {entry.title}, {problem.label}")
            for entry in drawn
            if not entry.graph.empty
        ]
        section = Section(title, [found, *members], notes)
        if single:
            section.figures = figures_
        else:
            section.folded = figures_
        files = [*figures_, *_write_table(out / "groups", "Groups found", [found])]
        files += _write_table(out / "members", "Members of the groups found", members)
        return [section], files


def _write_table(path: Path, title: str, tables: Sequence[Table]) -> list[Path]:
    """Write tables as Markdown and LaTeX and their numbers as one CSV; nothing if there is no table."""
    numbers = [table.numbers for table in tables if table.numbers is not None]
    if not numbers:
        return []
    columns = max((list(frame.columns) for frame in numbers), key=len)
    joined = pd.concat([frame.reindex(columns=columns, fill_value="") for frame in numbers])
    return [
        write_markdown(path.with_suffix(".md"), title, tables),
        write_csv(path.with_suffix(".csv"), joined),
        *write_latex(path.with_suffix(".tex"), tables),
    ]
