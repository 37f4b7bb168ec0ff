(function () {
  "use strict";
  var anchors = [[255, 255, 255], [107, 174, 214], [8, 48, 107]];
  function color(byte) {
    if (byte === 255) { return [242, 120, 120]; }
    var place = byte / 254 * 2, low = Math.min(1, Math.floor(place)), part = place - low;
    return [0, 1, 2].map(function (c) {
      return Math.round(anchors[low][c] * (1 - part) + anchors[low + 1][c] * part);
    });
  }
  function paint(canvas, n, at, cells, absent) {
    var away = {};
    (absent || []).forEach(function (i) { away[i] = true; });
    canvas.width = canvas.height = n;
    var context = canvas.getContext("2d"), image = context.createImageData(n, n);
    for (var i = 0; i < n; i++) {
      for (var j = 0; j < n; j++) {
        var blank = (i === j && !cells) || away[i] || away[j];
        var rgb = blank ? [217, 217, 217] : color(at(i, j)), p = 4 * (i * n + j);
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
    var sums = [0, 0], counts = [0, 0], away = {};
    (run.absent ? run.absent[k] : []).forEach(function (i) { away[i] = true; });
    for (var i = 0; i < run.n; i++) {
      for (var j = 0; j < run.n; j++) {
        if (i !== j && at(i, j) !== 255 && !away[i] && !away[j]) {
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
    var learned = root.querySelector(".learned"), oracle = root.querySelector(".oracle");
    function draw() {
      var k = Number(slider.value), size = run.n * run.n;
      var at = function (i, j) { return bytes.charCodeAt(k * size + i * run.n + j); };
      paint(learned, run.n, at, run.cells, run.absent && run.absent[k]);
      output.textContent = "round " + run.rounds[k] + summary(run, at, k);
      slider.setAttribute("aria-valuetext", "round " + run.rounds[k]);
      learned.setAttribute("aria-label", "W of " + run.title + " at round " + run.rounds[k]);
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
  Array.prototype.forEach.call(document.querySelectorAll(".weights-slider"), start);
}());
