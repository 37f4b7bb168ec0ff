// Draws W: a matrix of bytes, 0 to 254 for weights from 0 to the run's `top`, 255 for NaN.

const NAN = 255, LARGEST = 254;
const SCALES = {
  light: [[255, 255, 255], [107, 174, 214], [8, 48, 107]],
  dark: [[20, 24, 33], [43, 108, 176], [214, 238, 255]],
};

// The color of each byte, and of what is blank, as canvas pixels (ABGR).
function makeColors() {
  const scale = SCALES[isDark() ? "dark" : "light"];
  const pixel = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const colors = new Uint32Array(257);
  for (let level = 0; level <= LARGEST; level++) {
    const place = level / LARGEST * 2, low = Math.min(1, Math.floor(place));
    const mixed = scale[low].map((c, i) => Math.round(c + (scale[low + 1][i] - c) * (place - low)));
    colors[level] = pixel(mixed);
  }
  colors[NAN] = pixel([242, 120, 120]);
  colors[256] = pixel(isDark() ? [70, 74, 84] : [217, 217, 217]);
  return colors;
}

// Draws width x height pixels; levelAt(row, column) gives a byte, or 256 for a blank.
function paint(canvas, width, height, levelAt) {
  const colors = makeColors();
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let row = 0, p = 0; row < height; row++) {
    for (let column = 0; column < width; column++, p++) { pixels[p] = colors[levelAt(row, column)]; }
  }
  context.putImageData(image, 0, 0);
}

// Calls back with the row and the column under the pointer.
function onCell(canvas, callback) {
  return (event) => {
    const box = canvas.getBoundingClientRect();
    const place = (at, start, size, count) =>
      Math.min(count - 1, Math.max(0, Math.floor((at - start) / size * count)));
    callback(place(event.clientY, box.top, box.height, canvas.height),
      place(event.clientX, box.left, box.width, canvas.width));
  };
}

// W of one run. Places are those of the data; `order` maps places of the picture to them.
class Weights {
  static async from(data) {
    const made = new Weights();
    Object.assign(made, data);
    made.levels = addUp(await inflate(data.weights), data.n);
    made.truthLevels = [];
    for (const [round, text] of data.truths) {
      made.truthLevels.push([round, addUp(await inflate(text), data.n)]);
    }
    return made;
  }

  level(k, i, j) { return this.levels[(k * this.n + i) * this.n + j]; }

  weight(k, i, j) {
    const level = this.level(k, i, j);
    return level === NAN ? null : this.top * level / LARGEST;
  }

  isAbsent(k, i) { return Boolean(this.absent) && this.absent[k].includes(i); }

  clustersAt(k) { return latest(this.rounds[k], [[0, this.clusters], ...this.later]); }

  truthAt(k) {
    const clusters = this.clustersAt(k), levels = latest(this.rounds[k], this.truthLevels);
    if (levels) { return (i, j) => levels[i * this.n + j]; }
    return clusters && ((i, j) => (clusters[i] === clusters[j] ? LARGEST : 0));
  }

  // Mean weights within and across true clusters; null where these are unknown.
  means(k) {
    if (this.cells) { return this.cells.means && this.cells.means[k]; }
    const clusters = this.clustersAt(k);
    if (!clusters) { return null; }
    const sums = [0, 0], counts = [0, 0], away = new Set(this.absent ? this.absent[k] : []);
    for (let i = 0; i < this.n; i++) {
      for (let j = 0; j < this.n; j++) {
        if (i === j || this.level(k, i, j) === NAN || away.has(i) || away.has(j)) { continue; }
        const across = clusters[i] === clusters[j] ? 0 : 1;
        sums[across] += this.weight(k, i, j);
        counts[across] += 1;
      }
    }
    return sums.map((sum, i) => (counts[i] ? sum / counts[i] : null));
  }

  // The clients whose weight for client i, or i's for them, makes a link, the largest weight first.
  partners(k, i) {
    const found = [];
    for (let j = 0; j < this.n; j++) {
      if (j === i || this.isAbsent(k, i) || this.isAbsent(k, j)) { continue; }
      const weight = Math.max(this.weight(k, i, j) ?? 0, this.weight(k, j, i) ?? 0);
      if (weight >= this.threshold - 0.5 * this.top / LARGEST) { found.push([j, weight]); }
    }
    return found.sort((a, b) => b[1] - a[1]);
  }

  paint(canvas, k, order) {
    const away = new Set(this.absent ? this.absent[k] : []);
    paint(canvas, this.n, this.n, (row, column) => {
      const i = order[row], j = order[column];
      const blank = (i === j && !this.cells) || away.has(i) || away.has(j);
      return blank ? 256 : this.level(k, i, j);
    });
  }

  paintTruth(canvas, k, order) {
    const truth = this.truthAt(k);
    paint(canvas, this.n, this.n, (row, column) => (
      row === column && !this.cells ? 256 : truth(order[row], order[column])
    ));
  }

  // Row i of W over the snapshots: a column is a snapshot, a row is a client.
  paintPartners(canvas, i, order) {
    paint(canvas, this.rounds.length, this.n, (row, k) => {
      const j = order[row];
      return i === j || this.isAbsent(k, i) || this.isAbsent(k, j) ? 256 : this.level(k, i, j);
    });
  }
}

// Snapshots from the differences between them, modulo 256.
function addUp(steps, n) {
  for (let p = n * n; p < steps.length; p++) { steps[p] += steps[p - n * n]; }
  return steps;
}

// What counts in a round: the last entry [round, value] that is not after it.
function latest(round, entries) {
  return entries.reduce((found, [first, value]) => (round >= first ? value : found), null);
}
