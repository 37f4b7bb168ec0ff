// One problem's explorer: W of a run at a round, curves of all methods, and one client of the run.

const BEST_FIRST = 12; // partners that are named

class Explorer {
  constructor(root) {
    this.root = root;
    this.weights = new Map();
    this.plot = new Plot(this.part(".curves .drawing"));
    this.clientPlot = new Plot(this.part(".client .drawing"));
    this.state = { run: "", round: null, order: "", client: 0, metric: 0, log: null };
    this.timer = null;
    const on = (selector, name, call) => this.part(selector).addEventListener(name, call);
    on(".run", "change", () => { this.stop(); this.state.run = this.chosen(".run"); this.chooseRun(); });
    on(".order", "change", () => { this.state.order = this.chosen(".order"); this.draw(); });
    on(".metric", "change", () => { this.state.metric = this.number(".metric"); this.draw(); });
    on(".log", "change", () => { this.state.log = this.part(".log").checked; this.draw(); });
    on(".choice", "change", () => { this.state.client = this.number(".choice"); this.draw(); });
    on(".snapshot", "input", () => { this.stop(); this.setSnapshot(this.number(".snapshot")); });
    on(".play", "click", () => { if (this.timer === null) { this.play(); } else { this.stop(); } });
    this.listenToMatrices();
    redraws.push(() => { this.plot.names = this.clientPlot.names = ""; this.draw(); });
  }

  part(selector) { return this.root.querySelector(selector); }

  number(selector) { return Number(this.part(selector).value); }

  chosen(selector) { return this.part(selector).selectedOptions[0].textContent; }

  // Takes new data; choices stay, and a slider at its end follows a run that goes on.
  async show(data) {
    if (!this.data && document.body.dataset.live) { // a page that follows runs begins with one that goes on
      const going = data.runs.find((run) => !run.ended && run.weights) || data.runs.find((run) => !run.ended);
      this.state.run = going ? going.title : "";
    }
    const follows = !this.w || this.k === this.w.rounds.length - 1;
    this.data = data;
    this.weights.clear();
    fillSelect(this.part(".run"), data.runs.map((run) => run.title), this.state.run);
    fillSelect(this.part(".metric"), data.metrics.map((metric) => metric.label));
    this.part(".metric").value = this.state.metric;
    this.part(".left-out").textContent = data.left_out;
    if (follows) { this.state.round = Infinity; }
    await this.chooseRun();
    this.root.hidden = false;
    this.draw();
  }

  async chooseRun() {
    const run = this.data.runs[this.number(".run")];
    this.run = run;
    this.w = null;
    if (run && run.weights) {
      if (!this.weights.has(run)) { this.weights.set(run, await Weights.from(run.weights)); }
      if (this.run !== run) { return; } // another was chosen meanwhile
      this.w = this.weights.get(run);
    }
    this.part(".run-title").textContent = run ? run.title : "a run";
    this.part(".matrices").hidden = !this.w;
    this.part(".no-matrix").hidden = Boolean(this.w);
    this.count = this.w && !this.w.cells ? this.w.n : Math.max(0, ...this.curvesOfClients());
    this.part(".client").hidden = this.part(".all-clients").hidden = !this.count || Boolean(this.w?.cells);
    this.state.client = Math.min(this.state.client, Math.max(0, this.count - 1));
    const names = Array.from({ length: this.count }, (_, client) => this.clientName(client));
    fillSelect(this.part(".choice"), names);
    this.part(".choice").value = this.state.client;
    if (this.w) { this.prepareMatrix(); }
    this.fillClients();
    this.draw();
  }

  curvesOfClients() {
    return Object.values(this.run ? this.run.curves : {}).map((one) => one.clients.length);
  }

  clientName(client) {
    const name = this.run.names[client];
    return name && name !== String(client) ? `${client} (${name})` : String(client);
  }

  prepareMatrix() {
    const rounds = this.w.rounds, slider = this.part(".snapshot");
    slider.max = rounds.length - 1;
    // Another run is shown at the same round, to compare the two.
    const near = (k) => Math.abs(rounds[k] - Math.min(this.state.round ?? Infinity, 1e15));
    this.k = rounds.reduce((best, _, k) => (near(k) <= near(best) ? k : best), 0);
    const orders = Object.keys(this.w.orders);
    fillSelect(this.part(".order"), orders, this.state.order);
    this.part(".order").hidden = this.part(".order-label").hidden = orders.length < 2;
    this.part(".thinned").hidden = !this.w.thinned;
    this.part(".end").textContent = this.w.end;
    this.part(".per").textContent = this.w.cells ? this.w.cells.per : "";
    this.part(".truth").hidden = !this.w.truthAt(this.k);
  }

  setSnapshot(k) {
    this.k = k;
    this.state.round = k === this.w.rounds.length - 1 ? Infinity : this.w.rounds[k];
    this.draw();
  }

  play() {
    if (this.k >= this.w.rounds.length - 1) { this.setSnapshot(0); }
    this.part(".play").textContent = "Pause";
    const wait = Math.max(50, Math.min(500, 8000 / this.w.rounds.length));
    this.timer = setInterval(() => {
      if (this.k >= this.w.rounds.length - 1) { this.stop(); } else { this.setSnapshot(this.k + 1); }
    }, wait);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.part(".play").textContent = "Play";
  }

  // -- drawing -----------------------------------------------------------------------------------------

  draw() {
    if (!this.run) { return; }
    this.drawCurves();
    if (this.w) { this.drawMatrix(); }
    if (this.count && !(this.w && this.w.cells)) { this.drawClient(); }
  }

  order() {
    const orders = Object.values(this.w.orders);
    return orders.length ? orders[this.number(".order")] : [...Array(this.w.n).keys()];
  }

  metric() { return this.data.metrics[this.state.metric]; }

  mark() { return this.w ? this.w.rounds[this.k] : undefined; }

  drawCurves() {
    const { key, label } = this.metric();
    const lines = this.data.lines.filter((line) => line.series[key])
      .map((line) => ({ ...line, ...line.series[key], width: line.width * 1.2 }));
    const values = lines.flatMap((line) => line.mean).filter((value) => value !== null);
    const positive = values.length > 0 && values.every((value) => value > 0);
    const spread = positive && Math.max(...values) > 8 * Math.min(...values);
    this.isLog = this.state.log ?? (!label.includes("%") && spread);
    this.part(".log").checked = this.isLog;
    this.plot.show(lines, label, this.isLog, this.mark());
  }

  drawMatrix() {
    const { w, k } = this, order = this.order(), round = w.rounds[k], means = w.means(k);
    w.paint(this.part(".learned"), k, order);
    if (w.truthAt(k)) { w.paintTruth(this.part(".oracle"), k, order); }
    const [within, across] = (means || []).map((mean) => (mean === null ? "-" : mean.toFixed(2)));
    const words = means ? `, mean weight within clusters ${within}, across ${across}` : "";
    const slider = this.part(".snapshot");
    slider.value = k;
    slider.setAttribute("aria-valuetext", `round ${round}`);
    this.part(".state").textContent = `round ${round}${words}`;
    this.part(".learned").setAttribute("aria-label", `W of ${this.run.title} at round ${round}${words}`);
  }

  listenToMatrices() {
    const learned = this.part(".learned"), strip = this.part(".partners"), says = this.part(".cell");
    const name = (place) => this.clientName(this.w.clients[place]);
    const point = onCell(learned, (row, column) => {
      const order = this.order(), weight = this.w.weight(this.k, order[row], order[column]);
      says.textContent = this.w.cells ? `mean weight ${short(weight)}` :
        `client ${name(order[row])} gives client ${name(order[column])} the weight ${short(weight)}`;
    });
    const pick = onCell(learned, (row) => {
      if (this.w.cells) { return; }
      this.setClient(this.w.clients[this.order()[row]]);
    });
    const over = onCell(strip, (row, k) => {
      const j = this.order()[row], weight = this.w.weight(k, this.place(), j);
      const text = `round ${this.w.rounds[k]}: weight ${short(weight)} for client ${name(j)}`;
      this.part(".partner").textContent = text;
    });
    learned.addEventListener("pointermove", point);
    learned.addEventListener("click", pick);
    strip.addEventListener("pointermove", over);
  }

  // -- one client --------------------------------------------------------------------------------------

  place() { return this.w.clients.indexOf(this.state.client); }

  setClient(client) {
    this.state.client = client;
    this.part(".choice").value = client;
    this.draw();
  }

  drawClient() {
    const { key, label } = this.metric(), { client } = this.state;
    const curve = this.run.curves[key];
    this.part(".client-title").textContent = `Client ${this.clientName(client)}`;
    this.clientPlot.show(this.clientLines(key, client), label, this.isLog, this.mark());
    this.part(".strip").hidden = !this.w;
    const words = [];
    if (this.w) {
      this.drawPartners();
      words.push(this.partnerWords());
    }
    const last = curve && lastOf(curve.clients[client]);
    if (last !== null && last !== undefined) { words.push(`At the end: ${label} ${short(last)}.`); }
    this.part(".client-words").textContent = words.join(" ");
  }

  drawPartners() {
    this.w.paintPartners(this.part(".partners"), this.place(), this.order());
    this.part(".now").style.left = `${100 * (this.k + 0.5) / this.w.rounds.length}%`;
    const text = `Weights of client ${this.state.client} for the others over the rounds`;
    this.part(".partners").setAttribute("aria-label", text);
  }

  partnerWords() {
    const { w, k } = this, i = this.place(), found = w.partners(k, i);
    const clusters = w.clustersAt(k);
    const truth = clusters ? `True cluster ${clusters[i]}. ` : "";
    const named = found.slice(0, BEST_FIRST)
      .map(([j, weight]) => `${this.clientName(w.clients[j])} (weight ${weight.toFixed(2)})`);
    const more = found.length > BEST_FIRST ? ` and ${found.length - BEST_FIRST} more` : "";
    const partners = found.length ? `linked with ${named.join(", ")}${more}` : "linked with nobody";
    return `${truth}Round ${w.rounds[k]}: ${partners}. A link is a weight of at least ${short(w.threshold)}.`;
  }

  // The client in this run, the mean of the run's clients, and the client with the other methods.
  clientLines(key, client) {
    const own = this.run.curves[key];
    if (!own) { return []; }
    const mean = own.rounds.map((_, i) => meanOf(own.clients.map((row) => row[i])));
    const line = (title, color, dash, width, rounds, values) =>
      ({ title, color, dash, width, rounds, mean: values });
    const lines = [
      line(`client ${client}`, this.run.color, "", 2.6, own.rounds, own.clients[client]),
      line("mean of all clients", "#808080", "5 4", 1.6, own.rounds, mean),
    ];
    const others = this.data.runs.filter((run) => run !== this.run && run.method !== this.run.method
      && run.seed === this.run.seed && run.curves[key] && run.curves[key].clients[client]);
    for (const run of others) {
      const curve = run.curves[key];
      const title = `client ${client} with ${run.method}`;
      lines.push(line(title, run.color, "2 3", 1.6, curve.rounds, curve.clients[client]));
    }
    return lines;
  }

  // The table of all clients of the run, with what each gains over the method that trains alone.
  fillClients() {
    const place = this.part(".all-clients .wide"), before = place.querySelector("table");
    const w = this.w && !this.w.cells ? this.w : null, last = w && w.rounds.length - 1;
    const alone = this.data.runs.find((run) => run.alone && run.seed === this.run.seed && run !== this.run);
    const metrics = this.data.metrics.filter(({ key }) => this.run.curves[key]);
    const clusters = w && w.clustersAt(last);
    const heads = ["client", ...(clusters ? ["true cluster"] : []), ...(w ? ["links"] : [])];
    for (const { label } of metrics) {
      heads.push(label, ...(alone ? [`against ${alone.method}`] : []));
    }
    const rows = Array.from({ length: this.count }, (_, client) => {
      const i = w ? w.clients.indexOf(client) : -1, cells = [];
      if (clusters) { cells.push(String(clusters[i])); }
      if (w) { cells.push(String(w.partners(last, i).length)); }
      for (const { key } of metrics) {
        const own = lastOf(this.run.curves[key].clients[client]);
        cells.push(own === null ? "-" : short(own));
        if (alone) {
          const row = alone.curves[key] && alone.curves[key].clients[client];
          const other = row ? lastOf(row) : null;
          const gain = own === null || other === null ? null : own - other;
          cells.push(gain === null ? "-" : `${gain > 0 ? "+" : ""}${short(gain)}`);
        }
      }
      const button = make("button", { type: "button", title: "Show this client" }, this.clientName(client));
      button.addEventListener("click", () => {
        this.setClient(client);
        this.part(".client").scrollIntoView({ block: "nearest" });
      });
      const first = make("th", { scope: "row", class: "word" }, button);
      return make("tr", {}, first, ...cells.map((text) => make("td", {}, text)));
    });
    const cell = (text, i) => make("th", { scope: "col", ...(i ? {} : { class: "word" }) }, text);
    const head = make("thead", {}, make("tr", {}, ...heads.map(cell)));
    const table = make("table", {}, head, make("tbody", {}, ...rows));
    makeSortable(table);
    sortAlike(before, table);
    place.replaceChildren(table);
  }
}

function lastOf(values) {
  const known = (values || []).filter((value) => value !== null);
  return known.length ? known.at(-1) : null;
}

function meanOf(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((a, b) => a + b) / known.length : null;
}
