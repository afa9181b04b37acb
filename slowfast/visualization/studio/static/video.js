// One video: played, scored over time, explained; and the page where somebody drops one.

import { add, carryOut, color, element, get, note, problem, remove, section, upload } from "./api.js";
import { before, Player } from "./player.js";
import { tile } from "./runs.js";

const ROWS = 6, TOP = 5;
let lastRun = "";

/** A line with a progress bar for a job; `cancel` ends it. */
function progressLine(what, cancel) {
  const bar = element("progress", { max: 1 }), text = element("span", { role: "status" }, what);
  const node = element("div", { class: "job" }, text, element("button", { onclick: cancel }, "Cancel"), bar);
  const told = (job) => {
    const counted = job.total ? ` ${job.done} of ${job.total}` : "";
    text.textContent = job.state === "waiting" ? `${what}: waiting its turn` : `${what}: ${job.note || "at work"}${counted}`;
    if (job.total) bar.value = job.done / job.total; else bar.removeAttribute("value");
  };
  return { node, told };
}

/** Carry out a job with a progress line in `place`; null where it was cancelled or failed, which is said there.

 It is cancelled when one of `parts` of the page is left. */
async function watched(place, what, request, ...parts) {
  const stop = new AbortController();
  const leave = () => stop.abort();
  for (const part of parts) part.addEventListener("leave", leave);
  const line = progressLine(what, () => stop.abort());
  place.replaceChildren(line.node);
  try {
    const result = await carryOut(request, line.told, stop.signal);
    place.replaceChildren();
    return result;
  } catch (error) {
    place.replaceChildren(error.name === "AbortError" ? note(`${what}: cancelled.`) : problem(`${what}: ${error.message}`));
    return null;
  } finally {
    for (const part of parts) part.removeEventListener("leave", leave);
  }
}

// ---------------------------------------------------------------- the page of a video

export async function videoPage(main, id, runId) {
  const [video, { runs }] = await Promise.all([get(`/api/videos/${id}`), get("/api/runs")]);
  const networks = runs.filter((run) => !run.why_not);
  const left = element("div"), right = element("div");
  add(main,
    element("div", { class: "head" }, video.run ? element("div", { class: "crumb", style: { flexBasis: "100%" } }, element("a", { href: `#/run/${video.run.id}` }, video.run.name)) : null,
      element("h1", {}, video.title), verdict(video)),
    element("div", { class: "watch" }, left, right));
  if (!video.there) {
    left.append(problem("This file is not there any more: only what the test said of it is known."));
    add(right, said(video));
    return;
  }
  const status = element("div"), stage = element("div", { class: "stage", style: { aspectRatio: "4 / 3", maxWidth: "520px" } }, element("div", { class: "message" }, "making it ready"));
  const timeline = element("div"), bars = element("div");
  left.append(section(null, stage, status), timeline);
  const view = { main, video, player: null, result: null, bars, timeline, runs: networks, scores: new EventTarget() };
  add(right, networkChoice(view, runId), said(video));
  const playing = watched(status, "Preparing the video", { kind: "play", video: id }, main).then((ready) => {
    if (!ready) { stage.remove(); return; }
    view.player = new Player(ready);
    stage.replaceWith(view.player.node);
    if (ready.note) status.append(note(ready.note));
    view.onPlayer?.();
    if (video.boxes) addBoxes(view, ready.fps, left);
  });
  if (view.start && !video.boxes) await view.start();
  await playing;
}

function verdict(video) {
  if (!video.truth) return null;
  return element("p", { class: "lead" }, "True class: ", video.truth.join(", ") || "none", "  ",
    video.right === null ? null : element("span", { class: `tag ${video.right ? "good" : "bad"}` }, video.right ? "recognised in the test" : "mistaken in the test"));
}

function said(video) {
  if (!video.top) return null;
  return section("What the test said", barList(video.top, video.truth, () => "var(--muted)"));
}

function barList(guesses, truth, paint) {
  return element("ol", { class: "bars" }, guesses.map((guess) => element("li", {},
    element("span", { class: `label ${truth?.includes(guess.name) ? "true" : ""}`, title: guess.name }, guess.name),
    element("span", { class: "score" }, guess.score.toFixed(3)),
    element("span", { class: "bar" }, element("i", { style: { width: `${100 * Math.min(1, guess.score)}%`, background: paint(guess) } })))));
}

function networkChoice(view, wanted) {
  if (!view.runs.length) {
    return section("What a network sees", note("No run of this folder has a network that can be shown a video: it needs a config.yaml and a checkpoint of a network that classifies."));
  }
  const chosen = view.runs.find((run) => run.id === wanted) ?? view.runs.find((run) => run.id === (lastRun || view.video.run?.id)) ?? view.runs[0];
  const select = element("select", { id: "network", "aria-label": "Network", onchange: () => start() },
    view.runs.map((run) => element("option", { value: run.id, selected: run === chosen }, `${run.name} (${run.network})`)));
  const window = element("input", { type: "number", id: "window", min: "0.05", max: "600", step: "any", placeholder: "a clip", onchange: () => start() });
  const stride = element("input", { type: "number", id: "stride", min: "0.05", max: "600", step: "any", placeholder: "auto", onchange: () => start() });
  const status = element("div"), explain = element("div");
  let turn = 0;
  const start = async () => {
    wish?.remove();
    const mine = ++turn;
    lastRun = select.value;
    view.scores.dispatchEvent(new Event("leave"));
    view.result = null;
    view.bars.replaceChildren();
    view.timeline.replaceChildren();
    explain.replaceChildren();
    if (view.player) { view.player.maps = null; view.player.listeners = []; view.player.draw(); }
    const options = { video: view.video.id, run: select.value, ...seconds("window_s", window), ...seconds("stride_s", stride) };
    const result = await watched(status, "Predicting", { kind: "predict", ...options }, view.main, view.scores);
    if (mine !== turn || !result) return;
    view.result = result;
    view.onPlayer = () => { showScores(view); offerExplanation(view, explain, options); };
    if (view.player) view.onPlayer();
  };
  view.start = start;
  // A run of boxes has no network to show here: another one looks at its video when somebody wants that.
  const wish = view.video.boxes ? element("button", { onclick: () => start() }, "Show it to this network") : null;
  return section("What the network sees",
    element("div", { class: "row" }, element("div", { class: "field", style: { flexBasis: "100%" } }, element("label", { for: "network" }, "Network"), select),
      element("div", { class: "field" }, element("label", { for: "window" }, "Window, s"), window),
      element("div", { class: "field" }, element("label", { for: "stride" }, "Step, s"), stride)),
    wish ? element("div", { style: { marginTop: ".9rem" } }, wish) : null, status, element("div", { style: { marginTop: ".9rem" } }, view.bars), explain);
}

const seconds = (name, input) => (input.value === "" ? {} : { [name]: Number(input.value) });

// ---------------------------------------------------------------- scores over time

function showScores({ video, player, result, bars, timeline }) {
  const { edges, classes, scores, length_s: length } = result;
  const led = classes.map((_, k) => scores.reduce((sum, row, w) => sum + (k === row.indexOf(Math.max(...row)) ? edges[w + 1] - edges[w] : 0), 0));
  const highest = classes.map((_, k) => Math.max(...scores.map((row) => row[k])));
  // Those that are best most of the time, then those with the highest score; the colour of a class is its place here.
  const order = classes.map((_, k) => k).sort((a, b) => led[b] - led[a] || highest[b] - highest[a]);
  const paint = new Map(order.map((k, place) => [k, place < 8 ? color(place) : "var(--muted)"]));
  const heat = new Timeline(order.slice(0, ROWS).map((k) => ({
    name: classes[k].name, paint: paint.get(k), values: scores.map((row) => row[k]), best: scores.map((row) => row[k] === Math.max(...row)),
  })), edges, length, (time) => player.seek(time));
  timeline.replaceChildren(section("Classes over time", heat.node, note(
    `${scores.length} window${scores.length === 1 ? "" : "s"} of ${result.window_s.toFixed(2)} s${scores.length > 1 ? `, one every ${result.stride_s.toFixed(2)} s` : ""}. Stronger is a higher score, a line below marks the best class. Click to go there.`)));
  const lines = Array.from({ length: Math.min(TOP, classes.length) }, () => {
    const name = element("span", { class: "label" }), score = element("span", { class: "score" }), fill = element("i");
    return { name, score, fill, node: element("li", {}, name, score, element("span", { class: "bar" }, fill)) };
  });
  bars.replaceChildren(element("ol", { class: "bars", id: "bars" }, lines.map((line) => line.node)));
  let shownWindow = -1;
  player.onTime((now) => {
    heat.move(now);
    const w = Math.min(before(edges, now), scores.length - 1);
    if (w === shownWindow) return;
    shownWindow = w;
    const best = classes.map((_, k) => k).sort((a, b) => scores[w][b] - scores[w][a]);
    heat.mark(classes[best[0]].name);
    lines.forEach((line, place) => {
      const k = best[place];
      line.name.textContent = line.name.title = classes[k].name;
      line.name.classList.toggle("true", Boolean(video.truth?.includes(classes[k].name)));
      line.score.textContent = scores[w][k].toFixed(3);
      line.fill.style.width = `${100 * Math.max(0, Math.min(1, scores[w][k]))}%`;
      line.fill.style.background = paint.get(k);
    });
  });
}

class Timeline {
  constructor(rows, edges, length, seek) {
    this.rows = rows;
    this.edges = edges;
    this.length = length;
    this.cursor = element("i");
    this.seek = element("div", { class: "seek", role: "slider", tabindex: "0", "aria-label": "Time in seconds", "aria-valuemin": "0", "aria-valuemax": length.toFixed(2) }, this.cursor);
    this.names = rows.map((row) => element("div", { class: "name", title: row.name }, element("i", { class: "dot", style: { background: row.paint } }), row.name));
    this.canvases = rows.map(() => element("canvas", { "aria-hidden": "true" }));
    this.ticks = element("div", { class: "ticks" });
    const place = (node, column, row) => Object.assign(node.style, { gridColumn: column, gridRow: row });
    this.names.forEach((name, k) => { place(name, 1, k + 1); place(this.canvases[k], 2, k + 1); });
    place(this.ticks, 2, rows.length + 1);
    this.seek.style.gridRow = `1 / span ${rows.length}`;
    this.node = element("div", { class: "timeline", id: "timeline" }, this.names, this.canvases, this.ticks, this.seek);
    new ResizeObserver(() => this.draw()).observe(this.ticks);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    const go = (event) => {
      const box = this.seek.getBoundingClientRect();
      seek(((event.clientX - box.left) / box.width) * length);
    };
    this.seek.addEventListener("pointerdown", (event) => { this.seek.setPointerCapture(event.pointerId); go(event); });
    this.seek.addEventListener("pointermove", (event) => { if (event.buttons) go(event); });
    this.seek.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -5, PageDown: 5 }[event.key];
      if (step) seek(this.now + (step * length) / 50);
      else if (event.key === "Home") seek(0);
      else if (event.key === "End") seek(length);
      else return;
      event.preventDefault();
    });
  }

  draw() {
    const width = this.ticks.clientWidth, ratio = devicePixelRatio || 1;
    this.rows.forEach((row, k) => {
      const canvas = this.canvases[k], context = canvas.getContext("2d");
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(17 * ratio);
      context.scale(ratio, ratio);
      context.fillStyle = getComputedStyle(this.names[k].firstChild).backgroundColor;
      row.values.forEach((value, w) => {
        // On whole pixels, so that neighbours neither overlap nor leave a gap.
        const [from, to] = [w, w + 1].map((edge) => Math.round((this.edges[edge] / this.length) * width * ratio) / ratio);
        context.globalAlpha = Math.max(0, Math.min(1, value)) * 0.92;
        context.fillRect(from, 0, to - from, 14);
        if (row.best[w]) {
          context.globalAlpha = 1;
          context.fillRect(from, 15, to - from, 2);
        }
      });
    });
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120].find((size) => (this.length / size) * 46 <= width) ?? 300;
    const marks = [];
    for (let k = 0; ((this.length - k * step) / this.length) * width >= (k ? 40 : 1); k++) marks.push(k * step);
    this.ticks.replaceChildren(...[...marks, this.length].map((time) => element("span", { style: { left: `${(time / this.length) * 100}%` } },
      time === this.length ? `${Number(time.toFixed(1))} s` : String(Number(time.toFixed(1))))));
  }

  move(now) {
    this.now = now;
    this.cursor.style.left = `calc(${(100 * Math.min(1, now / this.length)).toFixed(3)}% - 1px)`;
    this.seek.setAttribute("aria-valuenow", now.toFixed(2));
  }

  mark(name) { this.names.forEach((node, k) => node.classList.toggle("now", this.rows[k].name === name)); }
}

// ---------------------------------------------------------------- where it looked

function offerExplanation(view, place, options) {
  const { player, result, main } = view, status = element("div"), paths = element("div");
  const target = element("select", { id: "target", "aria-label": "Class that is asked about" }, element("option", { value: "" }, "the best class of each moment"),
    result.classes.slice(0, 20).map((item) => element("option", { value: String(item.index) }, item.name)));
  const button = element("button", { id: "explain", onclick: () => run() }, "Show where it looked");
  const run = async () => {
    button.disabled = true;
    const asked = target.value === "" ? {} : { target: Number(target.value) };
    const windows = { window_s: result.window_s, stride_s: result.stride_s };
    const found = await watched(status, "Looking back", { kind: "explain", ...options, ...windows, ...asked }, main, view.scores);
    button.disabled = false;
    if (!found || !place.isConnected) return;
    const kept = found.pathways.includes(player.pathway) ? player.pathway : found.pathways[0];
    player.pathway = kept;
    player.setMaps(found.windows);
    paths.replaceChildren(pathways(player, found.pathways));
  };
  target.addEventListener("change", () => { if (player.maps) run(); });
  place.replaceChildren(element("h2", { style: { marginTop: "1.2rem" } }, "Grad-CAM"),
    element("div", { class: "row" }, element("div", { class: "field", style: { flex: "1 1 12rem" } }, element("label", { for: "target" }, "Class"), target), button), status, paths);
}

function pathways(player, names) {
  const choice = (name, label) => {
    const input = element("input", { type: "radio", name: "pathway", value: name, onchange: () => { player.pathway = name; player.draw(); } });
    input.checked = player.pathway === name;
    return element("label", {}, input, label);
  };
  const opacity = element("input", { type: "range", min: "0.1", max: "1", step: "0.05", value: String(player.opacity), "aria-label": "How strong", oninput: () => {
    player.opacity = Number(opacity.value);
    player.draw();
  } });
  return element("div", { style: { marginTop: ".7rem" } },
    element("div", { class: "choices", role: "radiogroup", "aria-label": "Pathway" }, names.map((name) => choice(name, name)), choice("", "off")),
    element("div", { class: "key", style: { marginTop: ".6rem" } }, element("span", {}, "little", element("i", { class: "ramp" }), "much"), opacity));
}

function addBoxes({ video, player }, fps, left) {
  player.setBoxes(video.boxes, fps);
  const toggle = element("input", { type: "checkbox", id: "boxes", onchange: () => { player.showBoxes = toggle.checked; player.draw(); } });
  toggle.checked = true;
  const times = player.boxes.times;
  left.append(section("Boxes at key frames",
    element("div", { class: "key" }, element("label", {}, toggle, " show boxes"),
      element("span", {}, element("i", { class: "dot", style: { background: "#2f62ea" } }), "scored by the network"),
      element("span", {}, element("i", { class: "dot", style: { background: "#c2500a" } }), "true (dashed)")),
    element("div", { class: "row", style: { marginTop: ".6rem" } }, video.boxes.key_frames.slice(0, 60).map((key, k) =>
      element("button", { onclick: () => { player.video.pause(); player.seek(times[k] + 1e-3); } }, `${key.second} s`)))));
  player.seek(times[0] + 1e-3);
}

// ---------------------------------------------------------------- one's own

export async function tryPage(main, runId) {
  if (runId) lastRun = runId;
  const [about, { runs }, { uploads }] = await Promise.all([get("/api/about"), get("/api/runs"), get("/api/uploads")]);
  const networks = runs.filter((run) => !run.why_not);
  const input = element("input", { type: "file", id: "file", accept: "video/*,.mkv,.avi,.mov,.ts,.flv,.wmv", hidden: true, onchange: () => { if (input.files[0]) receive(input.files[0]); } });
  const select = element("select", { id: "network", onchange: () => { lastRun = select.value; } },
    networks.map((run) => element("option", { value: run.id, selected: run.id === lastRun }, `${run.name} (${run.network})`)));
  const zone = element("div", { class: "drop" }, element("strong", {}, "Drop a video here"),
    element("p", {}, `up to ${Math.round(about.max_upload_bytes / 2 ** 20)} MB and ${Math.round(about.max_seconds / 60 * 10) / 10} minutes; it stays on this machine`),
    element("button", { class: "primary", onclick: () => input.click() }, "Choose a file"), input);
  add(main, element("div", { class: "head" }, element("h1", {}, "Your videos")),
    section(null, networks.length ? element("div", { class: "field", style: { marginBottom: "1rem" } }, element("label", { for: "network" }, "Network that looks at it"), select)
      : note("No run of this folder has a network that classifies: the video can be played, not more."), zone, element("div", { id: "receiving" })));
  if (uploads.length) main.append(section("Dropped before", element("div", { class: "videos", id: "uploads" }, uploads.map((video) => withRemoval(video)))));
}

function withRemoval(video) {
  const made = element("div", {}, tile(video), element("button", { class: "link", "aria-label": `Delete ${video.title}`, onclick: async () => {
    await remove(`/api/uploads/${video.id}`).catch(() => {});
    made.remove();
  } }, "delete"));
  return made;
}

/** Send a file and go to its page; what is wrong is said on the page of one's own videos. */
export async function receive(file) {
  if (!location.hash.startsWith("#/try")) {
    location.hash = "#/try";
    await new Promise((resolve) => { addEventListener("shown", resolve, { once: true }); });
  }
  const place = document.getElementById("receiving");
  try {
    const { max_upload_bytes: limit } = await get("/api/about");
    if (file.size > limit) throw new Error(`${file.name} has ${Math.ceil(file.size / 2 ** 20)} MB, at most ${Math.round(limit / 2 ** 20)} are taken (start with --max-upload-mb)`);
    let cancel = () => {};
    const line = progressLine(`Sending ${file.name}`, () => cancel());
    place.replaceChildren(line.node);
    const stored = await upload(file, (share) => line.told({ state: "running", note: `${Math.round(100 * share)} %`, done: share, total: 0 }), (end) => { cancel = end; });
    location.hash = `#/video/${stored.id}`;
  } catch (error) {
    place.replaceChildren(problem(`${file.name}: ${error.message}`));
  }
}
