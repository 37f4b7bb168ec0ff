"""Reports look the same on every machine, and show names as they are, whatever characters they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import assert_drawn, give_shares, write_run

from cobo_dist.cli.report import main
from cobo_dist.reports.figures.style import canvas

# As mathtext the first two are malformed; the others are markup of HTML, Markdown or rich.
NAMES = ("$\\frac$", "a$_$^$b", "<b>_x_</b>", "[red]|[/]\\")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run whose clients, folder and text_dir have such names."""
    folder = write_run(
        tmp_path / "$x_$ <b> \\runs", "cobo", 1, "language", domain="simplex",
        problem={"documents": "$\\alpha$_<i>"},
    )  # fmt: skip
    give_shares(folder, NAMES, rounds=40)
    return folder


def test_names_are_shown_as_they_are(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(
        tmp_path / "$other",
        "cobo",
        1,
        "language",
        domain="simplex",
        sampling="$\\no$ <i> _s_ [red]",
    )
    give_shares(other, NAMES, rounds=40)
    assert main([str(run_folder), str(other), "--out", str(tmp_path / "$out$")]) == 0
    for image in sorted((tmp_path / "$out$").rglob("*.png")):
        assert_drawn(image)
    page = (tmp_path / "$out$" / "index.html").read_text()
    assert "<b>_x_" not in page
    assert "<i>" not in page
    table = (tmp_path / "$out$" / "table.md").read_text()
    assert r"\$\\no\$ \<i> \_s\_ [red]" in table
    assert r"$\no$ <i> _s_ [red]" in capsys.readouterr().out


def test_a_matplotlibrc_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"lines.linewidth: 2  # \xff")
    done = subprocess.run(
        [sys.executable, "-m", "cobo_dist.report", "--figure-1", "--out", "report"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: matplotlib cannot be loaded: ")
    assert "'matplotlibrc' as utf-8; save the file" in line


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "unknown", "tkagg"]
)
def test_figures_need_no_backend_and_no_matplotlibrc(tmp_path: Path, backend: str) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfigure.facecolor: red\nsavefig.facecolor: red\nbackend: unknown\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "cobo_dist.report", str(run), "--out", str(tmp_path / "report")],
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pixels = assert_drawn(tmp_path / "report" / "accuracy.png")
    assert tuple(pixels[0, 0]) == (1.0, 1.0, 1.0), "a white figure"


def test_reports_replace_links_and_pipes(tmp_path: Path) -> None:
    run, other = write_run(tmp_path / "run"), tmp_path / "other"
    figures = run / "figures"
    figures.mkdir()
    other.write_text("kept")
    links = [figures / name for name in ("table.md", "index.html", "accuracy.csv", "loss.png")]
    pipes = [figures / name for name in ("table.csv", "accuracy.png", "loss.csv")]
    for one in links:
        one.symlink_to(other)
    for one in pipes:
        os.mkfifo(one)
    # A process of its own: to open a pipe waits for ever.
    command = [sys.executable, "-m", "cobo_dist.report", str(run)]
    subprocess.run(command, timeout=120, check=True, capture_output=True)
    assert other.read_text() == "kept"
    assert all(one.is_file() and not one.is_symlink() for one in (*links, *pipes))
    assert not list(figures.glob("*.part"))


def test_only_our_own_text_is_a_formula() -> None:
    with canvas(1.0, 1.0) as figure:
        assert not figure.text(0.5, 0.5, "$x$").get_parse_math()
    with canvas(1.0, 1.0, formulas=True) as figure:
        assert figure.text(0.5, 0.5, "$x$").get_parse_math()
