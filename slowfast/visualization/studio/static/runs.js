// The table of runs, one run, and several side by side.

import { element, get, note, percent, problem, section, shown, table } from "./api.js";
import { matrix, plotsOfRun, plotsOfRuns } from "./charts.js";

const MOST_COMPARED = 8;
const picked = new Set();

const when = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "-");
const result = (run) => (run.result === null ? "-" : run.measure === "loss" ? shown(run.result) : percent(run.result));
const epochs = (run) => (run.epochs === null ? "-" : `${shown(run.epochs)}${run.of_epochs > run.epochs ? ` of ${run.of_epochs}` : ""}`);
const value = (given) => (given === undefined || given === null ? "-" : typeof given === "string" ? given || '""' : JSON.stringify(given));

// ---------------------------------------------------------------- all runs

const COLUMNS = [
  ["Run", (run) => run.name], ["Network", (run) => run.network], ["Data", (run) => run.data],
  ["Result", (run) => run.result ?? -Infinity], ["Epochs", (run) => run.epochs ?? -1], ["Changed", (run) => run.changed_at],
];
const order = { column: 5, down: true };

export async function runsPage(main) {
  const { folder, runs } = await get("/api/runs");
  for (const id of picked) if (!runs.some((run) => run.id === id)) picked.delete(id);
  const compare = element("button", { class: "primary", id: "compare", onclick: () => { location.hash = `#/compare/${[...picked].join(",")}`; } });
  const search = element("input", { type: "search", placeholder: "Filter", "aria-label": "Filter runs", oninput: () => draw() });
  const place = element("div");
  const count = () => {
    compare.textContent = picked.size > 1 ? `Compare ${picked.size} runs` : "Compare";
    compare.disabled = picked.size < 2 || picked.size > MOST_COMPARED;
    compare.title = compare.disabled ? `Tick 2 to ${MOST_COMPARED} runs` : "";
  };
  const row = (run) => {
    const line = element("tr", { class: picked.has(run.id) ? "picked" : "" });
    const box = element("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, onchange: () => {
      if (box.checked) picked.add(run.id); else picked.delete(run.id);
      line.className = box.checked ? "picked" : "";
      count();
    } });
    box.checked = picked.has(run.id);
    line.append(
      element("td", {}, box),
      element("td", {}, element("a", { href: `#/run/${run.id}` }, run.name), run.boxes ? [" ", element("span", { class: "tag" }, "boxes")] : null),
      element("td", {}, run.network), element("td", {}, run.data || "-"),
      element("td", { class: "number" }, result(run), " ", run.measure && run.result !== null ? element("span", { class: "tag" }, run.measure) : null),
      element("td", { class: "number" }, epochs(run)), element("td", { class: "number" }, when(run.changed_at)));
    return line;
  };
  const draw = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    const [, key] = COLUMNS[order.column], sign = order.down ? -1 : 1;
    const kept = runs.filter((run) => words.every((word) => `${run.name} ${run.network} ${run.data}`.toLowerCase().includes(word)));
    kept.sort((a, b) => sign * (key(a) > key(b) ? 1 : key(a) < key(b) ? -1 : 0));
    const heads = COLUMNS.map(([name], k) => element("th", {
      class: k > 2 ? "number" : null, "aria-sort": k === order.column ? (order.down ? "descending" : "ascending") : null,
    }, element("button", { onclick: () => {
      Object.assign(order, { down: order.column === k ? !order.down : k > 2, column: k });
      draw();
    } }, name)));
    place.replaceChildren(kept.length ? table([element("th", {}), ...heads], kept.map(row), { id: "runs" }) : note("No run has these words."));
  };
  draw();
  count();
  main.append(
    element("div", { class: "head" }, element("h1", {}, "Runs"),
      element("div", { class: "actions" }, search, compare), element("p", { class: "lead" }, folder)),
    section(null, runs.length ? place : note("No run has written to this folder yet. Train one, for example with ",
      element("code", {}, "make quickstart"), ", or start the studio with another folder.")));
}

// ---------------------------------------------------------------- one run

export async function runPage(main, id) {
  const run = await get(`/api/runs/${id}`);
  main.append(
    element("div", { class: "head" },
      element("h1", {}, run.name),
      element("div", { class: "actions" }, run.why_not
        ? element("span", { class: "note" }, `Cannot be shown a video: ${run.why_not}.`)
        : element("button", { onclick: () => { location.hash = `#/try/${id}`; } }, "Show it a video")),
      element("p", { class: "lead" }, [run.network, run.data, run.folder].filter(Boolean).join("  ·  "))),
    cards(run));
  for (const text of run.notes) main.append(note(text));
  main.append(section("Training", run.panels.length ? plotsOfRun(run.panels) : note("No training in this folder: only what was tested is shown.")));
  if (run.tests.length) main.append(tested(run));
  if (run.box_classes.length) main.append(boxes(run));
  if (run.accuracy.length > 1) main.append(section("Results by number of views", accuracy(run.accuracy)));
  if (run.bad_videos.length) {
    const heads = Object.keys(run.bad_videos[0]);
    main.append(section("Unreadable videos", element("div", { class: "tall" }, table(heads, run.bad_videos.map((line) => heads.map((head) => line[head]))))));
  }
  main.append(section(`Configuration: ${run.config.length} of ${run.num_settings} keys differ from the defaults`,
    element("div", { class: "tall" }, table(["Key", "Value", "Default"], run.config.map((line) => [
      element("td", { class: "path" }, line.key), element("td", { class: "path" }, value(line.value)), element("td", { class: "path" }, value(line.default))])))));
}

function cards(run) {
  const card = (label, text, detail) => element("div", { class: "card" }, element("div", { class: "label" }, label),
    element("div", { class: "value" }, text), detail ? element("div", { class: "detail" }, detail) : null);
  const test = run.tests[run.tests.length - 1], last = run.accuracy[run.accuracy.length - 1];
  const names = { "top-1": "Top-1 accuracy", mAP: "mAP", loss: "Loss" };
  return element("div", { class: "cards" },
    run.result !== null ? card(names[run.measure], result(run), test ? `${test.name.replace("x", " clips x ")} crops` : "test") : null,
    last?.top5_acc !== undefined && run.class_names.length > 5 ? card("Top-5 accuracy", percent(last.top5_acc), `chance ${percent(500 / run.class_names.length, 0)}`) : null,
    test ? card("Test videos", test.videos.toLocaleString(), test.skipped ? `${test.skipped} skipped` : `${run.class_names.length} classes`) : null,
    run.epochs !== null ? card("Epochs", epochs(run), "trained") : null,
    run.parameters ? card("Parameters", `${(run.parameters / 1e6).toFixed(2)} M`) : null,
    card("Last change", when(run.changed_at).split(",")[0], when(run.changed_at).split(",").slice(1).join(",").trim()));
}

function accuracy(rows) {
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  return table(keys.map((key) => key.replace("_acc", " %")), rows.map((row) => keys.map((key) => shown(row[key] ?? null))), { numeric: keys.map((_, k) => k) });
}

function meter(share) {
  return element("div", { class: "meter" }, element("span", { class: "bar" }, element("i", { style: { width: `${share ?? 0}%` } })),
    element("b", {}, share === null ? "-" : share.toFixed(1)));
}

function tested(run) {
  const place = element("div"), behind = element("div", { id: "behind", "aria-live": "polite" });
  const draw = (test) => {
    const show = (filter, title) => showVideos(behind, run, test, filter, title);
    const pairs = (test.pairs ?? []).map(([truth, predicted, count, share]) => [
      element("td", {}, element("button", { class: "link", onclick: () => show({ true: truth, predicted }, `${run.class_names[truth]} taken for ${run.class_names[predicted]}`) },
        `${run.class_names[truth]} → ${run.class_names[predicted]}`)), String(count), `${Math.round(100 * share)} %`]);
    const classes = test.per_class.map((share, k) => [
      element("td", {}, element("button", { class: "link", onclick: () => show({ true: k }, `Videos of ${run.class_names[k]}`) }, run.class_names[k])), meter(share)]);
    const side = element("div", {},
      test.multi_label ? null : element("h2", {}, "Most confused"),
      test.multi_label ? null : pairs.length ? table(["True class → taken for", "Videos", "of class"], pairs, { numeric: [1, 2], class: "pairs" }) : note("None: every video was recognised."),
      element("h2", { style: { marginTop: "1rem" } }, test.multi_label ? "Average precision per class, %" : "Accuracy per class, %"),
      element("div", { class: "tall", style: test.multi_label ? {} : { maxHeight: "14.5rem" } }, table(["Class", ""], classes, { class: "pairs" })));
    place.replaceChildren(
      element("div", { class: "row" }, chooser(run, test, draw),
        element("button", { onclick: () => show({}, "All videos") }, "All videos"),
        element("button", { onclick: () => show({ wrong: 1 }, "Mistakes, the surest first") }, "Mistakes")),
      test.multi_label ? side : element("div", { class: "split" },
        element("div", {}, note("Rows: true class. Columns: what it was taken for. Pick a cell to see its videos."),
          matrix(test, run.class_names, (truth, predicted) => show({ true: truth, predicted },
            truth === predicted ? `${run.class_names[truth]}, recognised` : `${run.class_names[truth]} taken for ${run.class_names[predicted]}`))),
        side));
  };
  draw(run.tests[run.tests.length - 1]);
  return section("Test", place, behind);
}

function chooser(run, test, draw) {
  if (run.tests.length < 2) return null;
  const made = element("select", { "aria-label": "Test", onchange: () => draw(run.tests[made.selectedIndex]) },
    run.tests.map((item) => element("option", { selected: item === test }, `test of ${item.name} views`)));
  return made;
}

async function showVideos(place, run, test, filter, title) {
  const query = (offset) => new URLSearchParams({ ...filter, offset, limit: 24 });
  const list = element("div", { class: "videos" }), more = element("button", {}, "More");
  const heading = element("h2", { style: { margin: "1.2rem 0 .7rem" }, tabindex: "-1" }, title);
  place.replaceChildren(heading, list, more);
  let offset = 0;
  const load = async () => {
    try {
      const found = await get(`/api/runs/${run.id}/tests/${test.name}/videos?${query(offset)}`);
      heading.textContent = `${title}: ${found.total} video${found.total === 1 ? "" : "s"}`;
      list.append(...found.videos.map((video) => tile(video, run.id)));
      offset += found.videos.length;
      more.hidden = offset >= found.total;
    } catch (error) {
      place.replaceChildren(problem(error.message));
    }
  };
  more.addEventListener("click", load);
  await load();
  heading.scrollIntoView({ block: "nearest", behavior: "smooth" });
}

/** A small picture that leads to the video. */
export function tile(video, run) {
  const holder = element("div", { class: "picture" });
  const source = `/pictures/${video.id}`;
  let pause = 1500;
  const image = element("img", { src: source, alt: "", loading: "lazy", onload: () => { image.className = "there"; }, onerror: async () => {
    // Without content while it is being made, and nothing at all where the server is busy: asked for again.
    const answer = await fetch(source).catch(() => null);
    if (answer && !answer.ok && answer.status !== 429) { holder.replaceChildren("no picture"); return; }
    setTimeout(() => { if (image.isConnected) image.src = source; }, answer?.status === 200 ? 0 : pause);
    pause = Math.min(pause * 1.2, 10000);
  } });
  holder.append(image);
  const best = video.top?.[0];
  return element("a", { class: "video", href: `#/video/${video.id}${run ? `/${run}` : ""}` }, holder, element("div", { class: "text" },
    best ? element("span", { class: `tag ${video.right ? "good" : "bad"}` }, `${best.name} ${Math.round(100 * best.score)} %`) : null,
    element("small", {}, video.title)));
}

function boxes(run) {
  const classes = [...run.box_classes].sort((a, b) => (a.ap ?? 999) - (b.ap ?? 999));
  return section("Boxes", element("div", { class: "split" },
    element("div", {}, note("Videos of the test with their boxes at the key frames."),
      element("div", { class: "videos" }, run.box_videos.map((video) => tile(video, run.id)))),
    element("div", {}, element("h2", {}, "Average precision per class, %"), element("div", { class: "tall" },
      table(["Class", "True boxes", ""], classes.map((item) => [item.name, item.truth.toLocaleString(), meter(item.ap)]), { numeric: [1], class: "pairs" })))));
}

// ---------------------------------------------------------------- side by side

export async function comparePage(main, ids) {
  const { runs, panels, differences, same } = await get(`/api/compare?runs=${encodeURIComponent(ids)}`);
  main.append(
    element("div", { class: "head" }, element("h1", {}, `${runs.length} runs side by side`)),
    section(null, table(["Run", "Network", "Data", "Result", "Epochs", "Changed"], runs.map((run, k) => [
      element("td", {}, element("i", { class: "dot", style: { background: `var(--c${k % 8})` } }), element("a", { href: `#/run/${run.id}` }, run.name)),
      run.network, run.data || "-", `${result(run)} ${run.measure}`, epochs(run), when(run.changed_at)]), { numeric: [3, 4, 5] })),
    section("Curves", panels.length ? plotsOfRuns(panels) : note("None of them has trained.")),
    section(`Configuration: ${differences.length} keys differ, ${same} are the same`,
      differences.length ? table(["Key", ...runs.map((run) => run.name), "Default"], differences.map((line) => [
        element("td", { class: "path" }, line.key),
        ...line.values.map((given) => element("td", { class: `path ${value(given) === value(line.default) ? "" : "differs"}` }, value(given))),
        element("td", { class: "path" }, value(line.default))]), { id: "differences" }) : note("They were started with the same configuration.")));
}
