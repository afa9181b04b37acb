// Curves and the confusion matrix, drawn as SVG and tables in the colours of the page.

import { color, element, hideTip, shape, showTip, shown } from "./api.js";

const HEIGHT = 235, LEFT = 48, RIGHT = 10, TOP = 8, BOTTOM = 34;

/** Round numbers, about `count` of them, that cover low to high. */
export function ticks(low, high, count = 5) {
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = power * [1, 2, 5, 10].find((factor) => span / (power * factor) <= count);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function extent(curves, key, limits) {
  const values = curves.flatMap((curve) => (key === "y" && curve.smooth ? curve.smooth : curve[key])).filter((v) => v !== null);
  let low = Math.min(...values), high = Math.max(...values);
  if (key === "y") {
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    low = limits?.[0] ?? low - room;
    high = limits?.[1] ?? high + room;
  }
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/** One pair of axes, `width` pixels wide; `colorOf(curve)` gives the colour of a curve. */
function plot(panel, colorOf, [x0, x1], width) {
  const [y0, y1] = extent(panel.curves, "y", panel.limits);
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - ((y - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": describe(panel) });
  for (const tick of ticks(y0, y1)) {
    drawing.append(
      shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: py(tick), y2: py(tick) }),
      shape("text", { x: LEFT - 7, y: py(tick) + 4, "text-anchor": "end" }, shown(tick)));
  }
  for (const tick of ticks(x0, x1, 6)) drawing.append(shape("text", { x: px(tick), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, shown(tick)));
  drawing.append(
    shape("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    shape("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 3, "text-anchor": "middle" }, "epochs"));
  const line = (curve, values, kind) => {
    const points = curve.x.map((x, k) => [x, values[k]]).filter(([x, y]) => x !== null && y !== null);
    const clamp = (y) => Math.max(TOP - 2, Math.min(HEIGHT - BOTTOM, py(y)));
    if (points.length === 1) {
      return shape("circle", { cx: px(points[0][0]), cy: clamp(points[0][1]), r: 3, style: { fill: colorOf(curve) } });
    }
    const path = points.map(([x, y], k) => `${k ? "L" : "M"}${px(x).toFixed(1)} ${clamp(y).toFixed(1)}`).join("");
    return shape("path", { class: `curve ${kind} ${curve.dashed ? "dashed" : ""}`, d: path, style: { stroke: colorOf(curve) } });
  };
  for (const curve of panel.curves) if (curve.smooth) drawing.append(line(curve, curve.y, "faint"));
  for (const curve of panel.curves) drawing.append(line(curve, curve.smooth ?? curve.y, ""));
  addReadOut(drawing, panel, { px, x0, x1, width });
  return element("div", { class: "plot" }, element("h3", {}, panel.title), drawing);
}

function describe(panel) {
  const parts = panel.curves.map((curve) => {
    const values = (curve.smooth ?? curve.y).filter((v) => v !== null);
    return `${curve.label}: from ${shown(values[0])} to ${shown(values[values.length - 1])}`;
  });
  return `${panel.title} over epochs. ${parts.join("; ")}`;
}

function addReadOut(drawing, panel, { px, x0, x1, width }) {
  const cursor = shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
  cursor.style.display = "none";
  drawing.append(cursor);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const x = x0 + ((((event.clientX - box.left) / box.width) * width - LEFT) / (width - LEFT - RIGHT)) * (x1 - x0);
    const at = Math.max(x0, Math.min(x1, x));
    cursor.style.display = "";
    cursor.setAttribute("x1", px(at));
    cursor.setAttribute("x2", px(at));
    const lines = panel.curves.map((curve) => {
      let best = 0;
      curve.x.forEach((value, k) => { if (Math.abs(value - at) < Math.abs(curve.x[best] - at)) best = k; });
      return `${curve.label}: ${shown((curve.smooth ?? curve.y)[best])}`;
    });
    showTip(event, `epoch ${shown(at, 3)}\n${lines.join("\n")}`);
  });
  drawing.addEventListener("pointerleave", () => { cursor.style.display = "none"; hideTip(); });
}

/** Curves of one run: training blue, validation orange. */
export function plotsOfRun(panels) {
  const paint = (curve) => color(curve.validation ? 1 : 0);
  return [legend([["training", color(0), false], ["validation", color(1), false]]),
    grid(panels, paint)];
}

/** All panels with the same epochs, two or three beside each other. */
function grid(panels, paint) {
  const columns = panels.length === 3 || panels.length > 4 ? 3 : 2;
  const epochs = extent(panels.flatMap((panel) => panel.curves), "x");
  return element("div", { class: `plots columns-${columns}` }, panels.map((panel) => plot(panel, paint, epochs, innerWidth < 860 ? 330 : columns === 3 ? 400 : 600)));
}

/** Curves of several runs: a colour for each, validation dashed. */
export function plotsOfRuns(panels) {
  const runOf = (label) => label.split(",")[0];
  const names = [...new Set(panels.flatMap((panel) => panel.curves.map((curve) => runOf(curve.label))))];
  const entries = names.map((name, k) => [name, color(k), false]);
  if (panels.some((panel) => panel.curves.some((curve) => curve.dashed))) entries.push(["validation", "var(--muted)", true]);
  const paint = (curve) => color(names.indexOf(runOf(curve.label)));
  return [legend(entries), grid(panels, paint)];
}

function legend(entries) {
  return element("div", { class: "legend" }, entries.map(([name, paint, dashed]) =>
    element("span", {}, element("i", { class: dashed ? "dashed" : "", style: { borderColor: paint } }), name)));
}

const CELLS = 32; // classes up to which the matrix is a table with names

/** Confusion counts; `chosen(true, predicted)` is called for the cell that somebody picks. */
export function matrix(test, names, chosen) {
  const totals = new Map();
  for (const [row, , count] of test.counts) totals.set(row, (totals.get(row) ?? 0) + count);
  return test.classes <= CELLS ? matrixTable(test, names, totals, chosen) : matrixPicture(test, names, totals, chosen);
}

function matrixTable(test, names, totals, chosen) {
  const counts = new Map(test.counts.map(([row, column, count]) => [`${row} ${column}`, count]));
  const classes = [...Array(test.classes).keys()];
  const buttons = new Map();
  let pressed = null;
  const button = (row, column, count) => {
    const share = count / totals.get(row), right = row === column;
    const text = `${count} of ${totals.get(row)} videos of ${names[row]} ${right ? "were recognised" : `were taken for ${names[column]}`}`;
    const made = element("button", {
      class: share > 0.55 ? "strong" : "", "aria-label": text, "aria-pressed": "false",
      style: { background: `color-mix(in srgb, var(${right ? "--blue" : "--bad"}) ${Math.round(12 + 88 * share ** 0.7)}%, var(--paper))` },
      onpointermove: (event) => showTip(event, text), onpointerleave: hideTip,
      onclick: () => {
        pressed?.setAttribute("aria-pressed", "false");
        pressed = made;
        made.setAttribute("aria-pressed", "true");
        chosen(row, column);
      },
    }, String(count));
    buttons.set(`${row} ${column}`, made);
    return made;
  };
  const body = classes.map((row) => element("tr", {}, element("th", { scope: "row", title: names[row] }, names[row]),
    classes.map((column) => {
      const count = counts.get(`${row} ${column}`);
      return element("td", {}, count ? button(row, column, count) : null);
    })));
  const made = element("table", { class: "matrix", id: "confusion" },
    element("thead", {}, element("tr", {}, element("td"), classes.map((k) => element("th", { scope: "col", title: names[k] }, element("span", {}, names[k]))))),
    element("tbody", {}, body));
  made.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const here = [...buttons].find(([, node]) => node === document.activeElement)?.[0].split(" ").map(Number);
    if (!step || !here) return;
    event.preventDefault();
    for (let k = 1; k < test.classes; k++) {
      const next = buttons.get(`${here[0] + k * step[0]} ${here[1] + k * step[1]}`);
      if (next) { next.focus(); return; }
    }
  });
  return element("div", { class: "scroll" }, made);
}

function matrixPicture(test, names, totals, chosen) {
  const count = test.classes, cell = Math.max(1, Math.floor(900 / count));
  const canvas = element("canvas", { class: "matrix", id: "confusion", width: count * cell, height: count * cell, role: "img",
    "aria-label": `Confusion matrix of ${count} classes; the table beside it lists the most confused pairs` });
  const style = getComputedStyle(document.documentElement), context = canvas.getContext("2d");
  const counts = new Map();
  for (const [row, column, videos] of test.counts) {
    counts.set(`${row} ${column}`, videos);
    context.globalAlpha = 0.2 + 0.8 * (videos / totals.get(row)) ** 0.5;
    context.fillStyle = style.getPropertyValue(row === column ? "--blue" : "--bad");
    context.fillRect(column * cell, row * cell, cell, cell);
  }
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const place = (offset, side) => Math.max(0, Math.min(count - 1, Math.floor((offset / side) * count)));
    return [place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width)];
  };
  canvas.addEventListener("pointermove", (event) => {
    const [row, column] = at(event);
    showTip(event, `${names[row]} taken for ${names[column]}: ${counts.get(`${row} ${column}`) ?? 0} of ${totals.get(row) ?? 0}`);
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("click", (event) => {
    // Cells may be smaller than a finger: the nearest one that is not empty.
    const [row, column] = at(event), reach = Math.ceil(count / 80);
    const distance = ([i, j]) => Math.hypot(i - row, j - column);
    const near = test.counts.filter((cell) => distance(cell) <= reach).sort((a, b) => distance(a) - distance(b))[0];
    if (near) chosen(near[0], near[1]);
  });
  return canvas;
}
