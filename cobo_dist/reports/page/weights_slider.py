"""W over the rounds on the page: a slider over all snapshots, drawn by a few lines of JavaScript.

The matrices travel inside the page, one byte a weight: 0 to 254 for weights from 0 to `top` (1 or,
where a client's weights sum to 1, the largest of the run), 255 for NaN. Without JavaScript the
player stays hidden and the static figures remain.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cobo_dist.reports.grouping.groups import Group
from cobo_dist.reports.reading.run import Weights

LEVELS = 254
NAN = 255
_BUDGET = 3_000_000  # bytes of weights in one player, before base64


def player(groups: Sequence[Group], name: str) -> str:
    """The HTML of a player for the runs of some groups, empty where none has logged weights.

    `name` makes the ids of its elements unique on the page. Beyond a few megabytes every run keeps
    the most snapshots that fit, evenly spread with the first and the last among them.
    """
    # CoBo first: it is what the page opens with.
    groups = sorted(groups, key=lambda group: group.algorithm != "cobo")
    runs = [
        (f"{group.title}, seed {run.seed}", run.weights)
        for group in groups
        for run in group.runs
        if run.weights is not None
    ]
    if not runs:
        return ""
    total = sum(weights.weights.size for _, weights in runs)
    share = min(1.0, _BUDGET / total)
    entries = [_entry(title, weights, share) for title, weights in runs]
    data = json.dumps(entries, separators=(",", ":")).replace("<", "\\u003c")
    options = "".join(
        f"<option value='{i}'>{html.escape(entry['title'])}</option>"
        for i, entry in enumerate(entries)
    )
    thinned = " Not all snapshots are on this page." if share < 1.0 else ""
    return _MARKUP.format(name=name, data=data, options=options, thinned=thinned)


def quantise(matrices: npt.NDArray[np.float32], top: float = 1.0) -> npt.NDArray[np.uint8]:
    """Weights as bytes: 0..254 for 0..top, what lies outside cut off, 255 for NaN. Same shape."""
    with np.errstate(invalid="ignore"):
        bytes_ = np.clip(np.rint(matrices * (LEVELS / top)), 0, LEVELS)
    return np.where(np.isnan(matrices), NAN, bytes_).astype(np.uint8)


def _entry(title: str, weights: Weights, share: float) -> dict[str, Any]:
    """One run: clients in the order of their clusters, so that true links are diagonal blocks."""
    count = len(weights.rounds)
    # A W that never moves is told by its first and last snapshot.
    room = max(2, int(count * share)) if weights.moves else 2
    kept = np.unique(np.linspace(0, count - 1, room).round().astype(int))
    clusters, order, cells = weights.clusters, weights.order, weights.cells
    chosen = weights.weights[kept][:, order][:, :, order]  # [kept, n, n]
    entry = {
        "title": title,
        "n": len(order),
        "rounds": weights.rounds[kept].tolist(),
        "clients": order.tolist(),
        "clusters": None if clusters is None else clusters[order].tolist(),
        "top": weights.top,
        "end": f"{weights.top:.2g}, the largest weight of the run" if weights.share else "1",
        "weights": _encoded(chosen, weights.top),
    }
    if cells:
        links = [cells.links[name] for name in ("within", "across") if name in cells.links]
        means = [[line[number] for line in links] for number in entry["rounds"]]
        oracle = None if cells.oracle is None else _encoded(cells.oracle)
        per = f" A pixel is the mean weight of up to {cells.largest} x {cells.largest} clients."
        entry |= {"clients": [], "clusters": None}
        entry["cells"] = {"per": per, "oracle": oracle, "means": means if len(links) == 2 else None}
    return entry


def _encoded(matrices: npt.NDArray[np.float32], top: float = 1.0) -> str:
    return base64.b64encode(quantise(matrices, top).tobytes()).decode("ascii")


STYLE = """
.player { border: 1px solid #ccc; border-radius: 6px; padding: .8rem 1rem; margin: 2rem 0 }
.player .maps { display: flex; gap: 1.5rem; flex-wrap: wrap; align-items: flex-start }
.player figure { margin: .6rem 0 } .player figcaption { text-align: center }
.player canvas { width: 20rem; height: 20rem; max-width: 100%; image-rendering: pixelated;
  border: 1px solid #999 }
.player .controls { display: flex; gap: .8rem; align-items: center; flex-wrap: wrap }
.player input[type=range] { flex: 1; min-width: 12rem } .player button { min-width: 5rem }
.player .scale { display: inline-block; width: 8rem; height: .7rem; vertical-align: middle;
  border: 1px solid #999; background: linear-gradient(to right, #fff, #6baed6, #08306b) }
"""

_MARKUP = """<section class='player' aria-label='W over the rounds' hidden>
<h3>W over the rounds</h3>
<div class='controls'>
<label for='{name}-run'>Run</label> <select id='{name}-run'>{options}</select>
<button type='button'>Play</button>
<label for='{name}-round'>Snapshot</label>
<input type='range' id='{name}-round' min='0' max='0' value='0' step='1'>
<output for='{name}-round' aria-live='polite'></output>
</div>
<div class='maps'>
<figure><canvas class='learnt' role='img'></canvas><figcaption>W</figcaption></figure>
<figure class='truth'><canvas class='oracle' role='img' aria-label='true clusters'></canvas>
<figcaption>oracle</figcaption></figure>
</div>
<p>0 <span class='scale'></span> <span class='end'>1</span>; grey: a client's weight for
itself; red: not a number. Rows and columns are clients, sorted by their true cluster where it is
known.{thinned}<span class='per'></span> Arrow keys move the slider.</p>
<script type='application/json'>{data}</script>
</section>
"""

SCRIPT = """
(function () {
  "use strict";
  var anchors = [[255, 255, 255], [107, 174, 214], [8, 48, 107]];
  function colour(byte) {
    if (byte === 255) { return [242, 120, 120]; }
    var place = byte / 254 * 2, low = Math.min(1, Math.floor(place)), part = place - low;
    return [0, 1, 2].map(function (c) {
      return Math.round(anchors[low][c] * (1 - part) + anchors[low + 1][c] * part);
    });
  }
  function paint(canvas, n, at, cells) {
    canvas.width = canvas.height = n;
    var context = canvas.getContext("2d"), image = context.createImageData(n, n);
    for (var i = 0; i < n; i++) {
      for (var j = 0; j < n; j++) {
        var rgb = i === j && !cells ? [217, 217, 217] : colour(at(i, j)), p = 4 * (i * n + j);
        image.data.set([rgb[0], rgb[1], rgb[2], 255], p);
      }
    }
    context.putImageData(image, 0, 0);
  }
  function inWords(within, across) {
    return ", mean weight within clusters " + within + ", across " + across;
  }
  function summary(run, at, k) {
    if (run.cells) {
      var means = run.cells.means && run.cells.means[k];
      return means ? inWords(means[0].toFixed(2), means[1].toFixed(2)) : "";
    }
    if (!run.clusters) { return ""; }
    var sums = [0, 0], counts = [0, 0];
    for (var i = 0; i < run.n; i++) {
      for (var j = 0; j < run.n; j++) {
        if (i !== j && at(i, j) !== 255) {
          var within = run.clusters[i] === run.clusters[j] ? 1 : 0;
          sums[within] += run.top * at(i, j) / 254; counts[within] += 1;
        }
      }
    }
    var mean = function (k) { return counts[k] ? (sums[k] / counts[k]).toFixed(2) : "-"; };
    return inWords(mean(1), mean(0));
  }
  function start(root) {
    var runs = JSON.parse(root.querySelector("script").textContent), run, bytes, timer = null;
    var choice = root.querySelector("select"), slider = root.querySelector("input");
    var button = root.querySelector("button"), output = root.querySelector("output");
    var learnt = root.querySelector(".learnt"), oracle = root.querySelector(".oracle");
    function draw() {
      var k = Number(slider.value), size = run.n * run.n;
      var at = function (i, j) { return bytes.charCodeAt(k * size + i * run.n + j); };
      paint(learnt, run.n, at, run.cells);
      output.textContent = "round " + run.rounds[k] + summary(run, at, k);
      slider.setAttribute("aria-valuetext", "round " + run.rounds[k]);
      learnt.setAttribute("aria-label", "W of " + run.title + " at round " + run.rounds[k]);
    }
    function choose() {
      var round = run ? run.rounds[Number(slider.value)] : null;
      run = runs[Number(choice.value)];
      bytes = atob(run.weights);
      slider.max = run.rounds.length - 1;
      // Another run is shown at the same round, to compare the two.
      var near = 0;
      run.rounds.forEach(function (number, k) {
        if (Math.abs(number - round) < Math.abs(run.rounds[near] - round)) { near = k; }
      });
      slider.value = round === null ? run.rounds.length - 1 : near;
      root.querySelector(".end").textContent = run.end;
      root.querySelector(".per").textContent = run.cells ? run.cells.per : "";
      var truth = run.cells && run.cells.oracle ? atob(run.cells.oracle) : null;
      root.querySelector(".truth").hidden = !run.clusters && !truth;
      if (truth) {
        paint(oracle, run.n, function (i, j) { return truth.charCodeAt(i * run.n + j); }, true);
      }
      if (run.clusters) {
        paint(oracle, run.n, function (i, j) {
          return run.clusters[i] === run.clusters[j] ? 254 : 0;
        });
      }
      draw();
    }
    function stop() { clearInterval(timer); timer = null; button.textContent = "Play"; }
    function step() {
      if (Number(slider.value) >= Number(slider.max)) { stop(); return; }
      slider.value = Number(slider.value) + 1;
      draw();
    }
    button.addEventListener("click", function () {
      if (timer !== null) { stop(); return; }
      if (Number(slider.value) >= Number(slider.max)) { slider.value = 0; draw(); }
      button.textContent = "Pause";
      timer = setInterval(step, Math.max(80, Math.min(500, 8000 / run.rounds.length)));
    });
    slider.addEventListener("input", function () { stop(); draw(); });
    choice.addEventListener("change", function () { stop(); choose(); });
    root.hidden = false;
    choose();
  }
  Array.prototype.forEach.call(document.querySelectorAll(".player"), start);
}());
"""
