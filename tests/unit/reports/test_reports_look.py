"""Figures for papers: widths, formats, embedded fonts, equal files, and lines told apart without color."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from report_runs import write_run

from cobo_dist.algorithms.registry import ALGORITHMS, shown_as
from cobo_dist.cli.report import main
from cobo_dist.reports.figures.curves import draw_curve
from cobo_dist.reports.figures.style import (
    canvas,
    group_style,
    is_wide,
    place_legend,
    save,
    side_by_side,
)
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.look import LOOKS, use_look
from cobo_dist.reports.statistics import over_seeds
from cobo_dist.storage.schema import Method

ODD = "<script>alert(1)</script> --> $x^2$ \\frac & #1 ~ {a}"


def draw(path: Path, width: float = 3.2, label: str = "a line") -> list[Path]:
    """Save a figure with one line and a legend in the look that is in use."""
    with canvas(width, 2.0) as figure:
        axes = figure.add_subplot()
        (line,) = axes.plot([0, 1], [0, 1])
        axes.set_ylabel(label)
        place_legend(figure, {label: line})
        return save(figure, path, pd.DataFrame({"x": [1]}))


def inches_of(pdf: Path) -> float:
    """The width of a PDF's page."""
    box = re.search(rb"/MediaBox \[ ([\d.]+) [\d.]+ ([\d.]+) ", pdf.read_bytes())
    assert box is not None
    return (float(box[2]) - float(box[1])) / 72.0


@pytest.mark.parametrize(
    ("style", "columns", "natural", "inches"),
    [
        ("paper", None, 3.2, 3.3), ("paper", None, 6.5, 6.9), ("paper", 1, 6.5, 3.3),
        ("paper", 2, 3.2, 6.9), ("talk", None, 3.2, 3.9), ("talk", None, 6.5, 6.0),
    ],
)  # fmt: skip
def test_pages_are_as_wide_as_columns(
    tmp_path: Path, style: str, columns: int | None, natural: float, inches: float
) -> None:
    with use_look(style, columns=columns):
        png, pdf, svg, table = draw(tmp_path / "a.png", natural)
        assert is_wide(png) == (inches > 1.1 * LOOKS[style].widths[0])  # type: ignore[index]
    assert [one.name for one in (png, pdf, svg, table)] == ["a.png", "a.pdf", "a.svg", "a.csv"]
    assert inches_of(pdf) == pytest.approx(inches, abs=0.01)
    width = re.search(r'width="([\d.]+)pt"', svg.read_text())
    assert width is not None
    assert float(width[1]) / 72.0 == pytest.approx(inches, abs=0.01)


def test_letters_are_embedded_and_files_are_equal(tmp_path: Path) -> None:
    with use_look("paper"):
        first, second = (draw(tmp_path / f"{name}.png") for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix
    pdf = first[1].read_bytes()
    assert b"/FontFile2" in pdf, "TrueType"
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert "<dc:date>" not in first[2].read_text()


def test_the_look_ends_with_its_block_and_screen_is_png_only(tmp_path: Path) -> None:
    with use_look("talk", formats=["svg"]):
        assert [one.suffix for one in draw(tmp_path / "a.png")] == [".png", ".svg", ".csv"]
    assert [one.suffix for one in draw(tmp_path / "b.png")] == [".png", ".csv"]


def test_letters_and_lines_of_a_talk_are_larger() -> None:
    sizes = {}
    for name in ("paper", "talk"):
        with use_look(name), canvas(3.2, 2.0) as figure:
            label = figure.add_subplot().set_xlabel("round")
            sizes[name] = label.get_fontsize()
    assert sizes == {"paper": 8.0, "talk": pytest.approx(11.0)}


def test_panels_and_legends_find_room_in_a_narrow_figure() -> None:
    """Four panels of 2 inches: all side by side on a screen, two lines in a column of 3.3 inches."""
    with canvas(8.0, 2.0) as figure:
        assert len({axes.get_gridspec().nrows for axes in side_by_side(figure, 4, 2.0)} ^ {1}) == 0
    with use_look("paper", columns=1), canvas(8.0, 2.0) as figure:
        (shape,) = {axes.get_gridspec().get_geometry() for axes in side_by_side(figure, 4, 2.0)}
        assert shape == (2, 2)
        assert figure.get_figheight() == pytest.approx(4.0)
        (line,) = figure.axes[0].plot([0, 1])
        place_legend(figure, {"a long name of a method " * 2: line})
        assert figure.get_figheight() > 4.1, "the legend stands under the panels"


def test_names_do_no_harm_in_an_svg(tmp_path: Path) -> None:
    with use_look("paper"):
        _, _, svg, _ = draw(tmp_path / "a.png", label=ODD)
    text = svg.read_text()
    assert "<script" not in text
    assert "alert(1)</" not in text


def group(name: str, variant: int = 0, variants: int = 1) -> Group:
    """A group of a registered algorithm, whose run says only how to show it."""
    method = Method.model_validate(shown_as(ALGORITHMS[name].section(), 8))
    runs: Any = (SimpleNamespace(method=method),)
    return Group(name, runs, {}, variant, variants)


def test_methods_of_a_figure_differ_without_color() -> None:
    """The methods of the paper's Table 2 all have their own marker; two of any have a marker or dashes."""
    main_ones = [name for name in ALGORITHMS if group(name).method.place < 10]
    styles = [group_style(group(name)) for name in main_ones]
    assert len({(one.marker, one.hollow) for one in styles}) == len(styles) == 9
    assert len({str(one.dashes) for one in styles}) > 3
    looks = [
        (one.marker, str(one.dashes), one.hollow)
        for one in map(group_style, map(group, ALGORITHMS))
    ]
    assert len(looks) - len(set(looks)) <= 5, "few share both"


def test_settings_of_one_method_share_its_marker_beside_others_only() -> None:
    settings = [group("cobo", variant, 3) for variant in range(3)]
    assert {group_style(one).marker for one in settings} == {"o"}
    assert len({str(group_style(one).dashes) for one in settings}) == 3
    assert len({group_style(one, alone=True).marker for one in settings}) == 3


def test_a_method_without_a_marker_gets_one_by_its_name() -> None:
    plain = [
        Group(name, cast(Any, (SimpleNamespace(method=Method(title=name)),)), {})
        for name in ("mine", "yours", "another", "fourth")
    ]
    looks = {(group_style(one).marker, str(group_style(one).dashes)) for one in plain}
    assert len(looks) > 1
    assert looks == {(group_style(one).marker, str(group_style(one).dashes)) for one in plain}


def test_a_curve_has_its_methods_marker() -> None:
    """All of a few points are marked, and about eight of many."""
    style = group_style(group("ditto"))
    for count, marked in ((10, 10), (200, 8)):
        axes = Figure().subplots()
        draw_curve(axes, over_seeds([{r: float(r) for r in range(count)}]), style)
        (line,) = axes.get_lines()
        assert line.get_marker() == style.marker == "D"
        assert len(cast(list[int], line.get_markevery())) == pytest.approx(marked, abs=1)


def test_what_does_nothing_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path), "--columns", "1"]) == 2
    assert "--columns 1 does nothing with --style screen" in capsys.readouterr().err
    assert main(["--formats", "pdf", "gif", "--figure-1"]) == 2
    assert "--formats gif is no format of figures; give png, pdf, svg" in capsys.readouterr().err


def test_a_report_for_a_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure in three formats and in figures.tex, with how many clients, seeds and rounds."""
    runs = [
        write_run(tmp_path / f"{name}-s{seed}", name, seed)
        for name in ("local", "cobo")
        for seed in (1, 2)
    ]
    out = tmp_path / "out"
    assert main([*map(str, runs), "--style", "paper", "--out", str(out)]) == 0
    assert "accuracy.png, .pdf, .svg, .csv" in capsys.readouterr().out
    names = {one.stem for one in out.glob("*.png")}
    assert {"accuracy", "loss", "weights_cobo_s1"} <= names
    assert (
        names == {one.stem for one in out.glob("*.pdf")} == {one.stem for one in out.glob("*.svg")}
    )
    for pdf in out.glob("*.pdf"):
        assert min(abs(inches_of(pdf) - width) for width in (3.3, 6.9)) < 0.01
    text = (out / "figures.tex").read_text()
    for name in names:
        assert f"{{{{{name}}}.pdf}}" in text
    assert text.count("8 clients, 2 seeds (1, 2), 20 rounds.") == len(names)
    assert np.isfinite(pd.read_csv(out / "accuracy.csv")["mean"]).all()
