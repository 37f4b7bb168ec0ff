"""What was learned, in words: groups, who does better than alone, and the last lines of the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

from cobo_dist.cli.report import main
from cobo_dist.reports.grouping import group_runs
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.tables.scores import group_results
from cobo_dist.reports.words import learned_in_words

PAIRS = [0, 0, 1, 1, 2, 2, 3, 3]
ALONE = [0.5] * 8


def finished(folder: Path, algorithm: str, components: list[int | None], **more: Any) -> Path:
    """A finished run whose summary says in which component each client is."""
    rand = more.pop("adjusted_rand", None)
    write_run(folder, algorithm, **more)
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    for client, component in zip(summary["per_client"], components, strict=True):
        client["cluster"] = component
    known = [one for one in components if one is not None]
    summary |= {"clusters_found": len(set(known)), "adjusted_rand": rand}
    path.write_text(json.dumps(summary))
    return folder


def words(*folders: Path) -> list[str]:
    (problem,), _ = group_runs([read_run(folder) for folder in folders])
    return learned_in_words(group_results(problem))


def test_groups_and_gains_are_told(tmp_path: Path) -> None:
    """Six clients gain 10 points, one loses 20, one stays: the mean is (60 - 20) / 8 = 5 points."""
    finals = [0.6] * 6 + [0.3, 0.5]
    cobo = finished(tmp_path / "cobo", "cobo", [*PAIRS], finals=finals, adjusted_rand=1.0)
    local = finished(tmp_path / "local", "local", list(range(8)), finals=ALONE)
    assert words(cobo, local) == [
        "CoBo found 4 groups: {0,1} {2,3} {4,5} {6,7}, the true clusters; "
        "6 of 8 clients do better than alone (+5 points)."
    ]


@pytest.mark.parametrize(
    ("components", "rand", "told"),
    [
        ([0] * 8, 0.0, "1 group of all 8 clients (adjusted Rand index 0.00 with"),
        (list(range(8)), None, "no groups: each of the 8 clients is alone."),
        ([0, 0, 0, 1, 1, 0, None, 1], None, "2 groups: {0-2,5} {3,4,7}."),
    ],
)
def test_groups_of_every_kind(
    tmp_path: Path, components: list[int | None], rand: float | None, told: str
) -> None:
    cobo = finished(tmp_path / "cobo", "cobo", components, adjusted_rand=rand)
    (line,) = words(cobo)
    assert f"CoBo found {told}" in line
    assert line.endswith("run algorithm.name=local with the same settings, too.")


def test_seeds_are_counted_together(tmp_path: Path) -> None:
    runs = [
        finished(tmp_path / f"{name}-{seed}", name, groups, seed=seed, finals=[final] * 8)
        for name, groups, final in (("cobo", PAIRS, 0.7), ("local", list(range(8)), 0.5))
        for seed in (1, 2)
    ]
    (line,) = words(*runs)
    assert "(seed 1; components by seed: 4, 4)" in line
    assert line.endswith("; 16 of 16 clients of 2 seeds do better than alone (+20 points).")


def test_lower_is_better_for_a_perplexity(tmp_path: Path) -> None:
    """Made-up perplexities end at 50 - 10 * final: 44 for 0.6 beside 45 for 0.5."""
    cobo = finished(tmp_path / "cobo", "cobo", PAIRS, task="language", finals=[0.6] * 8)
    local = finished(tmp_path / "local", "local", PAIRS, task="language", finals=ALONE)
    (line,) = words(cobo, local)
    assert line.endswith("8 of 8 clients do better than alone (-1 perplexity).")


def test_a_method_without_weights_of_its_own_has_no_words(tmp_path: Path) -> None:
    assert words(write_run(tmp_path / "local", "local")) == []


def test_the_last_lines_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cobo = finished(tmp_path / "cobo", "cobo", PAIRS, finals=[0.6] * 8)
    local = finished(tmp_path / "local", "local", PAIRS, finals=ALONE)
    assert main([str(cobo), str(local), "--out", str(tmp_path / "out")]) == 0
    title, sentence, last = capsys.readouterr().out.splitlines()[-3:]
    assert title == "What was learned"
    assert "8 of 8 clients do better than alone (+10 points)" in sentence
    assert last == f"open {tmp_path / 'out' / 'index.html'}"
    assert sentence.strip() in (tmp_path / "out" / "index.html").read_text()
