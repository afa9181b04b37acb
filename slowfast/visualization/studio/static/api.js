// Talking to the server, and making elements: text is always set as text, so nothing that a file is called can act.

export class ApiError extends Error {}

async function ask(method, path, body, headers = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, body, headers: method === "GET" ? {} : { "X-Studio": "1", ...headers } });
  } catch {
    throw new ApiError("the server does not answer: was it ended?");
  }
  const value = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new ApiError(value.error);
  return value;
}

export const get = (path) => ask("GET", path);
export const remove = (path) => ask("DELETE", path);
export const post = (path, value) => ask("POST", path, JSON.stringify(value), { "Content-Type": "application/json" });

/** Send a file, telling `progress(0..1)` on the way; `started(cancel)` is given a way to end it. */
export function upload(file, progress, started) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api/uploads?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("X-Studio", "1");
    request.upload.onprogress = (event) => progress(event.loaded / Math.max(event.total, 1));
    request.onload = () => {
      let value = { error: `the server answered ${request.status}` };
      try { value = JSON.parse(request.responseText); } catch { /* said above */ }
      if (request.status === 200) resolve(value); else reject(new ApiError(value.error));
    };
    request.onerror = () => reject(new ApiError("the upload broke off"));
    request.onabort = () => reject(new ApiError("the upload was cancelled"));
    if (started) started(() => request.abort());
    request.send(file);
  });
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Start a job and wait for its result; `told(job)` hears of it until `signal` is aborted, which cancels the job. */
export async function carryOut(request, told, signal) {
  let job = await post("/api/jobs", request);
  let pause = 60;
  for (;;) {
    if (signal?.aborted) {
      if (job.state === "waiting" || job.state === "running") remove(`/api/jobs/${job.id}`).catch(() => {});
      throw new DOMException("cancelled", "AbortError");
    }
    told?.(job);
    if (job.state === "done") return job.result;
    if (job.state === "failed") throw new ApiError(job.error);
    if (job.state === "cancelled") throw new DOMException("cancelled", "AbortError");
    await wait(pause);
    pause = Math.min(pause * 1.4, 500);
    job = await get(`/api/jobs/${job.id}`);
  }
}

/** `<tag>` with attributes, listeners (`onclick`) and children; strings become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  return add(made, ...children);
}

/** Append what there is of `children`: null and false stand for nothing. */
export function add(node, ...children) {
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The same for drawings. */
export function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.assign(made.style, value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const problem = (text) => element("p", { class: "problem", role: "alert" }, text);
export const note = (...text) => element("p", { class: "note" }, ...text);
export const section = (title, ...children) => element("section", {}, title ? element("h2", {}, title) : null, ...children);
export const color = (index) => `var(--c${index % 8})`;

/** A number for people: at most four digits that count. */
export function shown(value, digits = 4) {
  if (typeof value !== "number") return value === null || value === undefined ? "-" : String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
  return String(Number(value.toPrecision(digits)));
}

export const percent = (value, digits = 1) => (value === null || value === undefined ? "-" : `${value.toFixed(digits)} %`);

export function table(heads, rows, { numeric = [], ...attributes } = {}) {
  const cell = (tag, value, index) =>
    value instanceof HTMLTableCellElement ? value : element(tag, { class: numeric.includes(index) ? "number" : null }, value ?? "-");
  return element("div", { class: "scroll" }, element("table", attributes,
    element("thead", {}, element("tr", {}, heads.map((value, index) => cell("th", value, index)))),
    element("tbody", {}, rows.map((row) =>
      row instanceof HTMLTableRowElement ? row : element("tr", {}, row.map((value, index) => cell("td", value, index)))))));
}

const tip = () => document.getElementById("tip");
export function showTip(event, text) {
  const box = tip();
  box.textContent = text;
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.min(event.clientX + 14, innerWidth - width - 8)}px`;
  box.style.top = `${event.clientY + height + 24 > innerHeight ? event.clientY - height - 10 : event.clientY + 16}px`;
}
export const hideTip = () => { tip().hidden = true; };
