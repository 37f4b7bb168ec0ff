// Starts the page, and keeps it up to date where a server of `cobo_dist.watch` answers.

const explorers = new Map();

async function startExplorer(root) {
  const explorer = new Explorer(root);
  explorers.set(root.id, explorer);
  await explorer.show(await decode(root.querySelector("script").textContent));
}

async function start() {
  startTheme(document.querySelector(".theme"));
  document.querySelectorAll("table").forEach(makeSortable);
  if (typeof DecompressionStream === "undefined") {
    document.querySelectorAll(".too-old").forEach((note) => { note.hidden = false; });
    return;
  }
  for (const root of document.querySelectorAll(".explorer")) { await startExplorer(root); }
  page.dataset.ready = "yes";
  if (document.body.dataset.live) { follow(document.body.dataset.live); }
}

// -- a running run -----------------------------------------------------------------------------------

const POLL_MILLISECONDS = 1000, ANSWER_MILLISECONDS = 30000;

function replaceFragment(id, html) {
  const place = document.getElementById(id);
  if (!place || place.dataset.html === html) { return; }
  const before = [...place.querySelectorAll("table")];
  place.innerHTML = html; // the server escapes names, and the policy of the page forbids script in it
  place.dataset.html = html;
  place.querySelectorAll("table").forEach((table, i) => {
    makeSortable(table);
    sortAlike(before[i], table);
  });
}

async function follow(address) {
  const contact = document.querySelector(".contact");
  for (let version = 0; ;) {
    try {
      const patience = { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MILLISECONDS) };
      const answer = await fetch(`${address}?version=${version}`, patience);
      if (answer.status === 200) {
        const news = await answer.json();
        if (news.layout !== document.body.dataset.layout) { location.reload(); return; }
        version = news.version;
        Object.entries(news.fragments).forEach(([id, html]) => replaceFragment(id, html));
        for (const [id, data] of Object.entries(news.explorers)) { await explorers.get(id).show(data); }
      } else if (answer.status !== 204) { throw new Error(String(answer.status)); }
      contact.textContent = "";
    } catch {
      contact.textContent = "The server does not answer; trying again.";
    }
    await new Promise((done) => { setTimeout(done, POLL_MILLISECONDS); });
  }
}

start();
