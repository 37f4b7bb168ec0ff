"""The page: complete in itself, accessible, and with all of W inside."""

from __future__ import annotations

import base64
import configparser
import hashlib
import html
import importlib.resources
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from page_data import explorers, levels_of, weights_on
from report_runs import CLUSTERS, N, blocks, give_shares, write_run

from cobo_dist.cli.report import main
from cobo_dist.reports.grouping import group_runs
from cobo_dist.reports.page import explorer as page_explorer
from cobo_dist.reports.page import make_explorer, render
from cobo_dist.reports.page.explorer import decode, encode
from cobo_dist.reports.page.weights_data import pack, quantize, unpack
from cobo_dist.reports.reading import read_run

LOGGED = [0, 1, 2, 4, 7, 10, 15, 20]
VOID = {"meta", "img", "input", "link"}


class Elements(HTMLParser):
    """All elements of a page, with a check that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close an element."""
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two seeds of CoBo and one of IFCA, whose W never moves, and of Local."""
    root = tmp_path_factory.mktemp("page")
    runs = [write_run(root / "ifca", "ifca", 1, finals=[0.5] * N)]
    np.savez(
        runs[0] / "W.npz", rounds=np.array(LOGGED), weights=np.ones((8, N, N)), clusters=CLUSTERS
    )
    runs += [write_run(root / f"cobo{seed}", "cobo", seed) for seed in (1, 2)]
    with np.load(runs[1] / "W.npz") as stored:
        arrays = dict(stored)
    arrays["weights"][3, 0, 1] = np.nan
    np.savez(runs[1] / "W.npz", **arrays)
    runs.append(write_run(root / "local", "local", 1))
    assert main([*map(str, runs), "--out", str(root / "out")]) == 0
    return (root / "out" / "index.html").read_text(encoding="utf-8")


def test_page_is_whole_and_alone(page: str) -> None:
    """Elements are closed, nothing is loaded, every picture has a text and every control a label."""
    elements = Elements(page)
    assert elements.open == []
    for _, attributes in elements.found:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    without_names = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\(", without_names)
    pictures = elements.all("img")
    assert len(pictures) >= 4
    for picture in pictures:
        assert picture["alt"]
        data = base64.b64decode((picture["src"] or "").partition(",")[2])
        assert data.startswith(b"\x89PNG")
    labels = {one.get("for") for one in elements.all("label")}
    for one in (*elements.all("select"), *elements.all("input")):
        # A check box is inside its label.
        assert one.get("id") in labels or one.get("aria-label") or one["type"] == "checkbox"
    for table in re.findall(r"<div class='wide'[^>]*>", page):
        assert "aria-label=" in table
    assert "hidden" in elements.all("section")[0]  # until there is JavaScript


def test_explorer_holds_every_snapshot(page: str) -> None:
    """Bytes of W, clients sorted by cluster, to within half a step of 1/254; NaN is 255."""
    (found,) = explorers(page)
    titles = [run["title"] for run in found["runs"]]
    assert titles == ["CoBo, seed 1", "CoBo, seed 2", "IFCA, seed 1", "Local, seed 1"]
    assert found["runs"][3]["weights"] is None
    runs = weights_on(page)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    for run in runs[:2]:
        assert run["rounds"] == LOGGED
        assert run["clients"] == order
        assert run["clusters"] == [0, 0, 1, 1, 2, 2, 3, 3]
        stored = levels_of(run)
        expected = np.stack([blocks(number)[np.ix_(order, order)] for number in LOGGED])
        close = np.abs(stored / 254.0 - expected) <= 0.5 / 254.0 + 1e-6
        places = [tuple(place) for place in np.argwhere(~close).tolist()]
        # Client 1 is the third in this order.
        assert places == ([(3, 0, 2)] if run is runs[0] else [])
        if places:
            assert stored[3, 0, 2] == 255
    # Of a W that never moves the page has the first and the last snapshot.
    assert runs[2]["rounds"] == [0, 20]


def test_explorer_holds_the_curves(page: str) -> None:
    """The mean over seeds with its interval, and each client's own values; accuracies in percent."""
    (found,) = explorers(page)
    assert [one["key"] for one in found["metrics"]] == ["accuracy", "loss", "training loss"]
    lines = {line["title"]: line["series"]["accuracy"] for line in found["lines"]}
    assert set(lines) == {"CoBo", "IFCA", "Local"}
    assert (lines["CoBo"]["rounds"], lines["CoBo"]["mean"][0]) == ([0, 5, 10, 15, 20], 10.0)
    assert lines["CoBo"]["mean"][-1] == pytest.approx(71.5)
    # Student's t for two seeds: 12.7 times the standard error.
    assert lines["CoBo"]["ci"][-1] == pytest.approx(12.706 * 1.5, rel=1e-3)
    assert lines["Local"]["ci"] == [None] * 5
    clients = found["runs"][0]["curves"]["accuracy"]
    assert clients["rounds"] == [0, 5, 10, 15, 20]
    assert [len(row) for row in clients["clients"]] == [5] * N
    assert np.mean(clients["clients"], axis=0)[-1] == pytest.approx(70.0, abs=0.01)


def test_names_are_escaped(tmp_path: Path) -> None:
    """Names of methods, clients and settings reach the page as text, never as elements or script."""
    evil = "</script><script>1"
    runs = [
        write_run(tmp_path / str(rho), f"{evil}&'", seed=1, finals=[0.5] * N, rho=rho)
        for rho in (0.1, 0.5)
    ]
    give_shares(runs[0], (evil, "b", "c", "d"), rounds=10)
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<script>1" not in page
    elements = Elements(page)
    assert elements.open == []
    assert len(elements.all("script")) == 2  # the explorer's data and the program
    assert "&lt;/script&gt;&lt;script&gt;1" in page
    ((first, _),) = (found["runs"] for found in explorers(page))
    assert first["title"].startswith(f"{evil}&'")
    assert first["names"][0] == evil


def test_the_policy_allows_the_page_s_own_script_only(page: str) -> None:
    """Its digest is that of the one script that is no data; styles likewise; nothing is loaded or sent."""
    (policy,) = re.findall(r"Content-Security-Policy' content=\"(.*?)\"", page)
    policy = html.unescape(policy)
    for tag, kind in (("script", "script-src"), ("style", "style-src")):
        ((_, text),) = re.findall(rf"<{tag}()>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "connect-src 'none'" in policy
    assert "style=" not in page
    assert not re.search(r"<[^>]*\son\w+=", page)


@pytest.mark.parametrize(
    ("package", "files"),
    [
        (
            "page",
            {
                *("report.html.j2", "parts.html.j2", "style.css", "page.js", "weights.js"),
                *("curves.js", "explorer.js", "start.js"),
            },
        ),
        ("figures", {"report.mplstyle"}),
    ],
)
def test_files_that_are_no_modules_are_installed(package: str, files: set[str]) -> None:
    """setup.cfg names each of them as package data."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[3] / "setup.cfg")
    pattern = config["options.package_data"][f"cobo_dist.reports.{package}"]
    folder = importlib.resources.files(f"cobo_dist.reports.{package}")
    with importlib.resources.as_file(folder) as path:
        assert {file.name for file in path.glob(pattern)} == files


def test_quantize() -> None:
    """Halfway, beyond the ends, not a number."""
    found = quantize(np.array([0.0, 0.5, 1.0, 1.5, -0.2, np.nan], np.float32))
    assert found.tolist() == [0, 127, 254, 254, 0, 255]


def test_pack() -> None:
    """Differences wrap around; a first snapshot is its own."""
    levels = np.random.default_rng(0).integers(0, 256, (5, 3, 3)).astype(np.uint8)
    np.testing.assert_array_equal(unpack(pack(levels), 3), levels)


def test_encode() -> None:
    data = {"a": [1, None, "</script>"], "b": 0.25}
    assert decode(encode(data)) == data
    assert "<" not in encode(data)


def test_long_runs_are_thinned(tmp_path: Path) -> None:
    """A W of noise cannot be made small: the page keeps some snapshots, says it, and stays small."""
    run = write_run(tmp_path / "run")
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2, (1000, 80, 80)).astype(np.float32)
    np.savez(run / "W.npz", rounds=np.arange(1000), weights=weights)
    for name in ("summary.json", "metrics.jsonl"):  # which are of 8 clients
        (run / name).write_text("")
    (run / "summary.json").unlink()
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "index.html"
    assert path.stat().st_size < render.MAX_PAGE_BYTES
    (entry,) = weights_on(path.read_text(encoding="utf-8"))
    rounds, order = entry["rounds"], entry["clients"]
    assert (rounds[0], rounds[-1], entry["n"], entry["clusters"]) == (0, 999, 80, None)
    assert 50 < len(rounds) < 1000
    assert entry["thinned"]
    np.testing.assert_array_equal(levels_of(entry)[-1], weights[-1][np.ix_(order, order)] * 254)


def test_runs_that_do_not_fit_are_left_out_and_counted(tmp_path: Path) -> None:
    """The first seed of each method stays longest."""
    folders = [("cobo", 1), ("cobo", 2), ("cobo", 3), ("local", 1), ("local", 2)]
    runs = [read_run(write_run(tmp_path / f"{name}{seed}", name, seed)) for name, seed in folders]
    (problem,), _ = group_runs(runs)
    explorer = make_explorer(problem.groups, problem.groups, "e")
    assert explorer is not None
    everything = len(encode(explorer.data(1_000_000)))
    seen = set()
    for limit in range(everything, 0, -everything // 40):
        found = explorer.data(limit)
        left = 5 - len(found["runs"])
        seen.add(left)
        assert found["left_out"] == (f"Runs that are not on this page: {left}." if left else "")
        assert len(encode(found)) <= limit or left == 5
        if left == 3:
            assert [(run["method"], run["seed"]) for run in found["runs"]] == [
                ("CoBo", 1),
                ("Local", 1),
            ]
    assert {0, 3, 5} <= seen
    assert explorer.data(10)["lines"] == found["lines"]


def test_figures_that_do_not_fit_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    run = write_run(tmp_path / "run")
    limit = len(page.encode()) // 2
    monkeypatch.setattr(render, "MAX_PAGE_BYTES", limit)
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "index.html"
    assert path.stat().st_size <= limit
    small = path.read_text(encoding="utf-8")
    found = re.search(r"but in files beside it:\s([\w., =-]+)\.\s*</p>", small)
    assert found is not None
    named = set(found[1].split(", "))
    drawn = {file.name for file in path.parent.glob("*.png")}
    assert named <= drawn
    assert len(named) + small.count("<img") == len(drawn)


def test_long_curves_are_thinned() -> None:
    """More points than a picture has pixels are left out, the first and the last kept."""
    spread = page_explorer._spread(range(1000), 100)
    assert (len(spread), spread[0], spread[-1]) == (100, 0, 999)
    assert page_explorer._spread([3, 5], 100) == [3, 5]
