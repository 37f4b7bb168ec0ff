"""Tables and captions in LaTeX: names show as they are, and pdflatex takes all files of a report."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_runs import N, write_run

from cobo_dist.cli.report import main
from cobo_dist.formatting import latex_text
from cobo_dist.reports.tables.latex import write_latex
from cobo_dist.reports.tables.table import Table

ODD = r"$\frac_ %5 & #1 ~ x^2 \input{a} {b} <script> |[red]| *bold* --- -"
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not here")


def compiled(folder: Path, body: str) -> str:
    """Compile a document, which must not fail, and return the text of its pages without white space."""
    source = (
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}"
        rf"\begin{{document}}{body}\end{{document}}"
    )
    (folder / "paper.tex").write_text(source)
    command = [
        "pdflatex",
        "-halt-on-error",
        "-no-shell-escape",
        "-interaction=batchmode",
        "paper.tex",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (folder / "paper.log").read_text(errors="replace")[-2000:]
    if shutil.which("pdftotext") is None:
        return ""
    text = subprocess.run(
        ["pdftotext", "paper.pdf", "-"], cwd=folder, capture_output=True, text=True, check=True
    )
    return re.sub(r"\s+", "", text.stdout)


def test_specials_are_escaped() -> None:
    assert latex_text(r"\x{a}") == r"\textbackslash{}x\{a\}"
    assert latex_text("a_b^c~d") == r"a\_b\textasciicircum{}c\textasciitilde{}d"
    assert latex_text("1 ± 2\n%") == r"1 $\pm$ 2 \%"
    assert latex_text("**x_y**") == r"\textbf{x\_y}"
    assert latex_text("a\x00\x1bb") == "a b"


@needs_latex
def test_odd_names_compile_and_show_as_they_are(tmp_path: Path) -> None:
    columns = pd.MultiIndex.from_tuples([("", "method"), (ODD, "acc. %"), (ODD, ODD)])
    # At the begin of a row, [ and * would be arguments of the end of the row above.
    rows = [[ODD, "1.0 ± 0.1", "-"], ["[2pt]", "**2.0**", "3"], ["*", "4", "5"]]
    table = Table(ODD, pd.DataFrame(rows, columns=columns), (ODD,), about="8 clients")
    (file,) = write_latex(tmp_path / "odd_name.tex", [table])
    text = compiled(tmp_path, rf"\input{{{file.name}}}")
    assert r"\label{tab:odd-name}" in file.read_text()
    if text:
        assert text.count(re.sub(r"\s+", "", ODD)) >= 4
        assert "[2pt]" in text
        assert "1.0±0.1" in text


def test_each_of_several_tables_has_a_file_and_a_label(tmp_path: Path) -> None:
    tables = [Table(name, pd.DataFrame({"method": ["a"], "x": ["1"]})) for name in ("one", "a b")]
    files = write_latex(tmp_path / "table.tex", tables, "A note.")
    assert files[0].name == "table_one.tex"
    assert len({re.findall(r"\\label\{(.*)\}", one.read_text())[0] for one in files}) == 2
    for file in files:
        text = file.read_text()
        assert r"\toprule" in text
        assert r"\begin{table}[t]" in text
        assert "A note." in text


@needs_latex
def test_all_files_of_a_report_compile(tmp_path: Path) -> None:
    """Two tasks, a method whose name has all specials, tables wider than a page, figures with captions."""
    random = np.random.default_rng(0)
    runs = [
        write_run(
            tmp_path / f"{task}-{place}-{seed}", name, seed, task,
            finals=(0.5 + 0.1 * random.random(N)).tolist(), domain="$x_1$ & {", validation=0.5,
        )
        for task in ("digits", "language")
        for place, name in enumerate(("local", ODD, "cobo"))
        for seed in (1, 2)
    ]  # fmt: skip
    out = tmp_path / "out"
    assert main([*map(str, runs), "--style", "paper", "--out", str(out)]) == 0
    for page in (out / "index.html", *out.rglob("*.svg")):
        assert "{b} <script>" not in page.read_text(), page
    files = sorted(out.rglob("*.tex"))
    names = {file.stem for file in files}
    assert {"table2", "significance", "clients", "reached", "figures", "table_digits"} <= names
    body = "\n".join(rf"\input{{{file.relative_to(out)}}}\clearpage" for file in files)
    text = compiled(out, body)
    if text:
        assert "8clients,2seeds(1,2),20rounds" in text
        assert "toofewseeds" in text
        assert re.sub(r"\s+", "", ODD) in text
        assert "Figure1:" in text
