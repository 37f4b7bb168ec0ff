"""The page: complete in itself, accessible, and with all of W inside."""

from __future__ import annotations

import base64
import configparser
import importlib.resources
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_runs import CLUSTERS, SAME, N, blocks, give_shares, write_run

from cobo_dist.cli.report import main
from cobo_dist.reports.page.weights_slider import quantize

LOGGED = [0, 1, 2, 4, 7, 10, 15, 20]
VOID = {"meta", "img", "input"}
NODE = shutil.which("node")


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


def sliders(page: str) -> list[list[dict[str, object]]]:
    """The data of the sliders on a page."""
    pattern = r"<script type='application/json'>(.*?)</script>"
    return [json.loads(text) for text in re.findall(pattern, page, re.DOTALL)]


def test_page_is_whole_and_alone(page: str) -> None:
    """Elements are closed, nothing is loaded, every picture has a text and every control a label."""
    elements = Elements(page)
    assert elements.open == []
    for _, attributes in elements.found:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert "href" not in attributes
    assert not re.search(r"https?://|@import|url\(", page)
    pictures = elements.all("img")
    assert len(pictures) >= 4
    for picture in pictures:
        assert picture["alt"]
        data = base64.b64decode((picture["src"] or "").partition(",")[2])
        assert data.startswith(b"\x89PNG")
    controls = {one["id"] for tag in ("select", "input") for one in elements.all(tag)}
    assert {one["for"] for one in elements.all("label")} == controls
    assert "hidden" in elements.all("section")[0]  # until there is JavaScript


def test_slider_holds_every_snapshot(page: str) -> None:
    """Bytes of W, clients sorted by cluster, to within half a step of 1/254; NaN is 255."""
    (runs,) = sliders(page)
    titles = [run["title"] for run in runs]
    assert titles == ["CoBo, seed 1", "CoBo, seed 2", "IFCA, seed 1"]
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    for run in runs[:2]:
        assert run["rounds"] == LOGGED
        assert run["clients"] == order
        assert run["clusters"] == [0, 0, 1, 1, 2, 2, 3, 3]
        stored = np.frombuffer(base64.b64decode(str(run["weights"])), np.uint8)
        stored = stored.reshape(len(LOGGED), N, N)
        expected = np.stack([blocks(number)[np.ix_(order, order)] for number in LOGGED])
        close = np.abs(stored / 254.0 - expected) <= 0.5 / 254.0 + 1e-6
        places = [tuple(place) for place in np.argwhere(~close).tolist()]
        # Client 1 is the third in this order.
        assert places == ([(3, 0, 2)] if run is runs[0] else [])
        if places:
            assert stored[3, 0, 2] == 255
    # Of a W that never moves the page has the first and the last snapshot.
    assert runs[2]["rounds"] == [0, 20]


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
    assert len(elements.all("script")) == 2  # the slider's data and its program
    assert "&lt;/script&gt;&lt;script&gt;1" in page
    ((first, _),) = sliders(page)
    assert str(first["title"]).startswith(f"{evil}&'")


@pytest.mark.parametrize(
    ("package", "files"),
    [
        ("page", {"report.html.j2", "style.css", "weights_slider.js"}),
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


def test_long_runs_are_thinned(tmp_path: Path) -> None:
    """1,000 snapshots of 80 clients are 6.4 MB: the page keeps every second or so, and says it."""
    run = write_run(tmp_path / "run")
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2, (1000, 80, 80)).astype(np.float32)
    np.savez(run / "W.npz", rounds=np.arange(1000), weights=weights)
    for name in ("summary.json", "metrics.jsonl"):  # which are of 8 clients
        (run / name).write_text("")
    (run / "summary.json").unlink()
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    ((entry,),) = sliders(page)
    rounds = entry["rounds"]
    assert isinstance(rounds, list)
    assert (rounds[0], rounds[-1], entry["n"], entry["clusters"]) == (0, 999, 80, None)
    assert 400 < len(rounds) < 500
    assert "Not all snapshots are on this page." in page
    stored = np.frombuffer(base64.b64decode(str(entry["weights"])), np.uint8)
    order = entry["clients"]
    np.testing.assert_array_equal(
        stored.reshape(-1, 80, 80)[-1], weights[-1][np.ix_(order, order)] * 254
    )


DOM = """
const page = require("fs").readFileSync(process.argv[2], "utf8");
const data = page.match(/<script type='application\\/json'>([\\s\\S]*?)<\\/script>/)[1];
function element() {
  return {
    heard: {}, attributes: {}, value: "0", hidden: true, textContent: "",
    addEventListener(name, call) { this.heard[name] = call; },
    setAttribute(name, value) { this.attributes[name] = value; },
    getContext() {
      return {
        createImageData: (w, h) => ({ data: new Uint8ClampedArray(4 * w * h) }),
        putImageData: (image) => { this.image = Array.from(image.data); },
      };
    },
  };
}
const parts = Object.fromEntries(
  ["script", "select", "input", "button", "output", ".learned", ".oracle", ".truth", ".end", ".per"]
    .map((name) => [name, element()]));
parts.script.textContent = data;
const root = Object.assign(element(), { querySelector: (name) => parts[name] });
global.document = { querySelectorAll: () => [root] };
eval(page.match(/<script>([\\s\\S]*?)<\\/script>/)[1]);
const states = [];
function note() {
  states.push({
    text: parts.output.textContent, learned: parts[".learned"].image, max: parts.input.max,
    oracle: parts[".oracle"].image, hidden: root.hidden, name: parts[".learned"].attributes,
  });
}
note();
parts.input.value = "5"; parts.input.heard.input(); note();
parts.select.value = "2"; parts.select.heard.change(); note();
console.log(JSON.stringify(states));
"""


@pytest.mark.skipif(NODE is None, reason="needs node to run the page's JavaScript")
def test_script_draws_what_the_slider_says(page: str, tmp_path: Path) -> None:
    """The last round at first; round 10, where W equals the oracle; then another run, nearest."""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "dom.js").write_text(DOM, encoding="utf-8")
    command = [str(NODE), "dom.js", "page.html"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    last, tenth, other = json.loads(done.stdout)
    assert last["text"] == "round 20, mean weight within clusters 1.00, across 0.00"
    assert (last["hidden"], last["max"]) == (False, len(LOGGED) - 1)
    assert tenth["text"].startswith("round 10,")
    assert tenth["learned"] == tenth["oracle"]
    pixels = np.array(tenth["learned"]).reshape(N, N, 4)
    sorted_same = SAME[np.ix_([0, 4, 1, 5, 2, 6, 3, 7], [0, 4, 1, 5, 2, 6, 3, 7])]
    dark = (pixels[..., :3] == [8, 48, 107]).all(axis=-1)
    np.testing.assert_array_equal(dark, sorted_same & ~np.eye(N, dtype=bool))
    assert other["text"] == "round 0, mean weight within clusters 1.00, across 1.00"
    assert other["name"]["aria-label"] == "W of IFCA, seed 1 at round 0"
