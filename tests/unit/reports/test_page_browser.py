"""The page in a real browser: nothing in its console, and everything on it does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser, browsing
from page_data import levels_of, weights_on
from report_runs import N, write_run

from cobo_dist.cli.report import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of CoBo and Local, with the names that an attacker would give to clients."""
    root = tmp_path_factory.mktemp("page")
    runs = [write_run(root / name, name, 1) for name in ("cobo", "local")]
    with np.load(runs[0] / "W.npz") as stored:
        arrays = dict(stored)
    arrays["names"] = np.array([EVIL, *(f"n{i}" for i in range(1, N))])
    np.savez(runs[0] / "W.npz", **arrays)
    assert main([*map(str, runs), "--out", str(root / "out")]) == 0
    return root / "out" / "index.html"


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests of the module."""
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def browser(shared_browser: Browser, page: Path) -> Iterator[Browser]:
    """The browser with the page as it opens; at the end nothing is in the console and nothing was loaded."""
    shared_browser.resize(1280)
    shared_browser.prefer("light")
    shared_browser.requests.clear()
    shared_browser.errors.clear()
    shared_browser.open(page.as_uri())
    shared_browser.run("localStorage.clear()")
    yield shared_browser
    assert shared_browser.errors == []
    loaded = {one for one in shared_browser.requests if not one.startswith("data:")}
    assert loaded == {page.as_uri()}


def part(selector: str) -> str:
    """The element of the first explorer, in JavaScript."""
    return f"document.querySelector('.explorer {selector}')"


def choose(browser: Browser, selector: str, value: int) -> None:
    """Set a control as a user would."""
    kind = "input" if selector == ".snapshot" else "change"
    browser.run(f"{part(selector)}.value = {value}")
    browser.run(f"{part(selector)}.dispatchEvent(new Event('{kind}'))")


def pixels(browser: Browser, selector: str) -> np.ndarray:
    """The colors of a canvas, [height, width, 3]."""
    found = browser.run(
        f"(() => {{ const c = {part(selector)}; return [c.height, c.width, Array.from("
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]; })()"
    )
    return np.array(found[2], np.uint8).reshape(found[0], found[1], 4)[..., :3]


def test_the_slider_draws_w(browser: Browser, page: Path) -> None:
    """The last round at first, then round 4: each byte of the data has its own darkness."""
    state = f"{part('.state')}.textContent"
    assert browser.run(state) == "round 20, mean weight within clusters 1.00, across 0.00"
    assert (pixels(browser, ".learned") == pixels(browser, ".oracle")).all()
    choose(browser, ".snapshot", 3)
    assert browser.run(state) == "round 4, mean weight within clusters 1.00, across 0.60"
    (weights,) = weights_on(page.read_text(encoding="utf-8"))
    drawn, levels = pixels(browser, ".learned").astype(int), levels_of(weights)[3]
    off = ~np.eye(N, dtype=bool)
    assert (drawn[~off] == 217).all()
    for level in np.unique(levels[off]):
        assert len(np.unique(drawn[off & (levels == level)], axis=0)) == 1
    assert len(np.unique(drawn[off], axis=0)) == len(np.unique(levels[off])) == 2
    browser.run(f"{part('.snapshot')}.focus()")
    browser.key("ArrowRight")
    assert browser.run(state).startswith("round 7,")


def test_orders_of_clients(browser: Browser) -> None:
    names = f"[...{part('.order')}.options].map((one) => one.textContent)"
    assert browser.run(names) == ["by true cluster", "linked side by side", "by number"]
    by_cluster = pixels(browser, ".learned")
    choose(browser, ".order", 2)
    by_number = pixels(browser, ".learned")
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    assert (by_number[np.ix_(order, order)] == by_cluster).all()
    assert (by_number != by_cluster).any()


def test_play_goes_through_all_snapshots(browser: Browser) -> None:
    browser.run(f"{part('.play')}.focus()")
    browser.key("Enter")
    assert browser.run(f"{part('.play')}.textContent") == "Pause"
    browser.wait(f"{part('.state')}.textContent.startsWith('round 4,')")
    browser.wait(f"{part('.play')}.textContent === 'Play'")
    assert browser.run(f"{part('.state')}.textContent").startswith("round 20,")


def test_a_client_has_its_own_panel(browser: Browser) -> None:
    """A click on the third row of W opens client 1; its words, its curve and its partners follow."""
    browser.run(
        f"(() => {{ const c = {part('.learned')}, box = c.getBoundingClientRect(); c.dispatchEvent("
        "new MouseEvent('click', {clientX: box.left + 5, clientY: box.top + box.height * 2.5 / 8})); })()"
    )
    assert browser.run(f"{part('.client-title')}.textContent") == "Client 1 (n1)"
    words = browser.run(f"{part('.client-words')}.textContent")
    assert "True cluster 1. Round 20: linked with 5 (n5) (weight 1.00). A link" in words
    assert pixels(browser, ".partners").shape == (N, 8, 3)
    legend = (
        "[...document.querySelectorAll('.client .legend button')].map((one) => one.textContent)"
    )
    assert browser.run(legend) == ["client 1", "mean of all clients", "client 1 with Local"]
    choose(browser, ".choice", 0)
    assert EVIL in browser.run(f"{part('.client-title')}.textContent")
    assert browser.run("document.querySelectorAll('img[src=x]').length") == 0


def test_curves_read_values_under_the_pointer_and_the_keys(browser: Browser) -> None:
    box = browser.run(
        f"(() => {{ const b = {part('.curves .plot')}.getBoundingClientRect(); "
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    browser.point(box[0] + box[2] - 14, box[1] + box[3] / 2)
    readout = f"{part('.curves .readout')}.innerText"
    assert browser.run(readout).split("\n") == ["round 20", "CoBo 70", "Local 60"]
    browser.run(f"{part('.curves .plot')}.focus()")
    browser.key("ArrowLeft")
    assert browser.run(readout).startswith("round 15")
    browser.key("Escape")
    assert browser.run(f"{part('.curves .readout')}.hidden")
    lines = f"{part('.curves .plot')}.querySelectorAll('path').length"
    assert browser.run(lines) == 2
    browser.run(f"{part('.curves .legend button')}.click()")
    assert browser.run(lines) == 1
    choose(browser, ".metric", 1)
    assert "test loss over rounds" in browser.run(
        f"{part('.curves .plot')}.getAttribute('aria-label')"
    )


def test_tables_sort(browser: Browser) -> None:
    """By number, the largest first, then the smallest; words by letters."""
    column = (
        "[...document.querySelectorAll('#tables-1 table')[0].tBodies[0].rows]"
        ".map((row) => row.cells[{}].textContent)"
    )
    head = "document.querySelectorAll('#tables-1 table')[0].tHead.rows[0].cells[{}]"
    for _ in range(2):
        browser.run(f"{head.format(2)}.querySelector('button').click()")
        found = [float(text) for text in browser.run(column.format(2))]
        direction = browser.run(f"{head.format(2)}.getAttribute('aria-sort')")
        assert found == sorted(found, reverse=direction == "descending")
    browser.run(f"{head.format(0)}.querySelector('button').click()")
    assert browser.run(column.format(0)) == ["cobo", "local"]
    assert browser.run(f"{head.format(2)}.getAttribute('aria-sort')") is None


def test_all_clients_are_compared_with_local(browser: Browser) -> None:
    """Seven of the eight clients do better than alone."""
    heads = "[...document.querySelectorAll('.all-clients thead th')].map((one) => one.textContent)"
    assert browser.run(heads)[:5] == [
        "client", "true cluster", "links", "test accuracy (%)", "against Local",
    ]  # fmt: skip
    gains = browser.run(
        "[...document.querySelectorAll('.all-clients tbody tr')].map((row) => row.cells[4].textContent)"
    )
    assert sum(text.startswith("+") for text in gains) == 7


def test_light_and_dark(browser: Browser) -> None:
    """The system decides, the button decides otherwise, and the matrix is drawn in other colors."""
    paper = "getComputedStyle(document.body).backgroundColor"
    light, drawn = browser.run(paper), pixels(browser, ".learned")
    assert light == "rgb(255, 255, 255)"
    browser.prefer("dark")
    browser.wait("document.querySelector('.theme').textContent === 'Light'")
    assert browser.run(paper) != light
    assert (pixels(browser, ".learned") != drawn).any()
    browser.run("document.querySelector('.theme').click()")
    assert browser.run(paper) == light
    assert (pixels(browser, ".learned") == drawn).all()
    browser.run("localStorage.clear(); delete document.documentElement.dataset.theme")


def test_a_narrow_window_scrolls_only_tables(browser: Browser) -> None:
    browser.resize(360, 800)
    browser.wait("document.documentElement.clientWidth === 360")
    assert browser.run("document.documentElement.scrollWidth") == 360
    browser.wait(f"{part('.curves .plot')}.getAttribute('viewBox').split(' ')[2] < 360")


def test_every_control_is_reached_by_keyboard(browser: Browser) -> None:
    """Tab goes through the run, the metric, play, the slider, the order, both plots and the table's heads."""
    browser.run("document.activeElement.blur()")
    seen = set()
    for _ in range(40):
        browser.key("Tab")
        seen.add(
            browser.run(
                "[document.activeElement.tagName.toLowerCase(), "
                "...(document.activeElement.classList || [])].join('.')"
            )
        )
    expected = {"select.run", "select.metric", "button.play", "input.snapshot", "select.order"}
    assert expected | {"svg.plot", "select.choice", "button.theme", "summary"} <= seen


def test_print(browser: Browser) -> None:
    """Printed pages are light, also from a dark page, and hold what was folded."""
    browser.prefer("dark")
    data = browser.pdf()
    assert data.startswith(b"%PDF-")
    assert len(data) > 50_000
    assert browser.run("document.querySelectorAll('details[open]').length") == 0


def test_a_large_page_opens_and_plays(shared_browser: Browser, tmp_path: Path) -> None:
    """80 clients and 400 snapshots of a W that learns 8 clusters: under 1.5 MB, every snapshot there."""
    run = write_run(tmp_path / "run")
    n, rng, clusters = 80, np.random.default_rng(0), np.arange(80) % 8
    same, weights = np.equal.outer(clusters, clusters), np.ones((400, 80, 80), np.float32)
    for k in range(1, 400):
        i, j = rng.integers(0, n, (2, 200))
        weights[k] = weights[k - 1]
        step = 0.1 * np.where(same[i, j], 1, -1) + 0.05 * rng.standard_normal(200)
        weights[k, i, j] = np.clip(weights[k, i, j] + step, 0, 1)
        weights[k, j, i] = weights[k, i, j]
    np.savez(run / "W.npz", rounds=np.arange(400), weights=weights, clusters=clusters)
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").write_text("")
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    page = tmp_path / "out" / "index.html"
    assert page.stat().st_size < 1_500_000
    shared_browser.open(page.as_uri())
    assert shared_browser.run(f"{part('.snapshot')}.max") == "399"
    milliseconds = shared_browser.run(
        f"(() => {{ const s = {part('.snapshot')}, from = performance.now(); for (let k = 0; k < 400; k++)"
        "{ s.value = k; s.dispatchEvent(new Event('input')); } return (performance.now() - from) / 400; })()"
    )
    assert milliseconds < 50, "a snapshot is shown for 50 ms"
    assert shared_browser.run(f"{part('.state')}.textContent").startswith("round 399,")
    assert shared_browser.errors == []
