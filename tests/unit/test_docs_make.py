"""docs/make.py: figures and tables in README and docs are those of their files, and each has a command."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINS_NOTHING = ("partition_ring.png", "client_selection.png")  # and others of the same commands


@pytest.fixture
def copy(tmp_path: Path) -> SimpleNamespace:
    """docs/make.py in a copy of README, docs and the scripts that it names."""
    for name in ("docs", "benchmarks", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "README.md", tmp_path)
    return SimpleNamespace(root=tmp_path, **runpy.run_path(str(tmp_path / "docs/make.py")))


def test_nothing_is_stale() -> None:
    """If this fails, its lines say what to do."""
    assert list(runpy.run_path(str(ROOT / "docs/make.py"))["stale"]()) == []


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_number_that_was_typed_into_a_page_is_found(copy: SimpleNamespace) -> None:
    edit(copy.root / "docs/RESULTS.md", "| oracle | 93.5", "| oracle | 99.5")
    (problem,) = copy.stale()
    assert "docs/RESULTS.md differs from docs/data: '| oracle | 99.5" in problem
    assert copy.main(["--write"]) == 0
    assert list(copy.stale()) == []
    assert (copy.root / "docs/RESULTS.md").read_bytes() == (ROOT / "docs/RESULTS.md").read_bytes()


def test_new_numbers_reach_the_page(copy: SimpleNamespace) -> None:
    """A study's table, here in Markdown, is stored and shown where its block is."""
    study = copy.root / "study.md"
    study.write_text(
        "# Study\n\n| epsilon | accuracy % |\n|---|---:|\n| 8 | 81.5 \\| 2 |\n\nnote\n"
    )
    assert copy.main(["--take", "privacy", str(study)]) == 0
    table = "| epsilon | accuracy % |\n|---|---:|\n| 8 | 81.5 \\| 2 |"
    assert (
        f"<!-- data: privacy -->\n\n{table}\n\n<!-- end -->"
        in (copy.root / "docs/COBO.md").read_text()
    )
    assert list(copy.stale()) == []
    with pytest.raises(SystemExit) as refused:
        copy.main(["--take", "privasy", str(study)])
    assert refused.value.code == 2
    assert not (copy.root / "docs/data/privasy.csv").exists()


@pytest.mark.parametrize("before", ["", "-\n\n"])
def test_a_block_that_waits_for_its_numbers_is_filled_and_nothing_else(
    copy: SimpleNamespace, before: str
) -> None:
    page = copy.root / "docs/COBO.md"
    written = page.read_text()
    start = written.index("<!-- data: privacy -->\n\n") + len("<!-- data: privacy -->\n\n")
    end = written.index("<!-- end -->", start)
    page.write_text(written[:start] + before + written[end:])
    assert copy.main(["--write"]) == 0
    filled = page.read_text()
    assert filled.startswith(written[:start])
    assert filled.endswith(written[end:])
    assert (
        filled[start : -len(written[end:])].splitlines()[2:] == written[start:end].splitlines()[2:]
    )


def test_what_has_no_command_or_no_page_is_found(copy: SimpleNamespace) -> None:
    shutil.copy(copy.root / "docs/figures/sketch.png", copy.root / "docs/figures/other.png")
    (copy.root / "docs/data/scale.csv").unlink()
    edit(copy.root / "docs/COBO.md", "(figures/sketch.png)", "(figures/theory_m.png)")
    page = copy.root / "docs/PERFORMANCE.md"
    page.write_text(page.read_text() + "\n| ranks | seconds |\n|---|---|\n| 4 | 0.5 |\n")
    (copy.root / "benchmarks/gram.py").unlink()
    found = "\n".join(copy.stale())
    assert "docs/figures/other.png has no command" in found
    assert "docs/data/scale.csv is missing; make it: python benchmarks/scale.py" in found
    assert "sketch.png is shown by no page" in found
    assert "docs/PERFORMANCE.md: a table of numbers typed by hand: | ranks | seconds |" in found
    assert "gram.csv: benchmarks/gram.py of its command does not exist" in found


@pytest.mark.slow
def test_pictures_that_train_nothing_are_as_drawn_now(copy: SimpleNamespace) -> None:
    """Up to the rounding of fonts and lines: no more than one pixel in a hundred differs visibly."""
    (copy.root / "docs/figures").rename(copy.root / "before")
    (copy.root / "docs/figures").mkdir()
    copy.main([*TRAINS_NOTHING])
    drawn = sorted((copy.root / "docs/figures").glob("*.png"))
    assert {path.name for path in drawn} >= set(TRAINS_NOTHING)
    for path in drawn:
        old, new = (
            matplotlib.image.imread(one) for one in (copy.root / "before" / path.name, path)
        )
        assert old.shape == new.shape, path.name
        assert (np.abs(old - new).max(axis=-1) > 0.2).mean() < 0.01, path.name
