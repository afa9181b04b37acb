"""One self-contained HTML page: elements that escape what they are given, one style, one small script.

Nothing is loaded from elsewhere, and the script only adds sorting, filtering and read-outs under the mouse: the
page says the same without it. Colours are variables, so that it follows the reader's light or dark theme.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slowfast.visualization import plots


class Html(str):
    """Text that is markup already; everything else is escaped on its way into an element."""


@dataclass(frozen=True)
class Section:
    """A part of the page with a place in its table of contents."""

    anchor: str
    title: str
    body: Html


_VOID = {"img", "input", "meta", "br"}
_THEME = {plots.INK: "ink", plots.MUTED: "muted", plots.GRID: "line", plots.TRAIN: "blue", plots.VAL: "orange"}


def element(tag: str, *children: str | None, **attributes: object) -> Html:
    """``<tag ...>children</tag>``; plain strings are escaped, ``None`` is left out.

    Attribute names drop a trailing underscore and turn others into hyphens (``class_``, ``data_frame``); an
    attribute that is ``None`` or ``False`` is left out, ``True`` stands without a value.
    """
    text = f"<{tag}"
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            text += f" {name}"
        elif value is not None and value is not False:
            text += f' {name}="{html.escape(str(value))}"'
    if tag in _VOID:
        return Html(text + ">")
    return Html(text + ">" + join(children) + f"</{tag}>")


def join(children: Iterable[str | None]) -> Html:
    """Children one after another, escaped unless they are markup."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children if c is not None))


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[int] = (), **attributes: object
) -> Html:
    """A table in a box that scrolls sideways on a narrow screen; ``numeric`` columns are set right.

    A cell may come as a ready ``<td>`` or ``<th>`` element.
    """

    def cells(tag: str, row: Sequence[str]) -> list[Html]:
        return [
            value
            if isinstance(value, Html) and value.startswith(f"<{tag}")
            else element(tag, value, class_="number" if index in numeric else None)
            for index, value in enumerate(row)
        ]

    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", *cells("th", head))),
            element("tbody", *(element("tr", *cells("td", row)) for row in rows)),
            **attributes,
        ),
        class_="scroll",
    )


def note(*children: str) -> Html:
    """A quiet line, mostly to say what is missing and why."""
    return element("p", *children, class_="note")


def card(label: str, value: str, detail: str = "") -> Html:
    """One headline number."""
    return element(
        "div",
        element("div", label, class_="label"),
        element("div", value, class_="value"),
        element("div", detail, class_="detail") if detail else None,
        class_="card",
    )


def bar(share: float, kind: str = "") -> Html:
    """A horizontal bar filled to ``share`` (0..1); ``kind`` is "", "good" or "bad"."""
    width = 100 * min(max(share, 0.0), 1.0)
    return element("span", element("i", style=f"width:{width:.1f}%"), class_=f"bar {kind}".strip(), aria_hidden="true")


def png_image(data: bytes, *, alt: str) -> Html:
    """A PNG file inside the page."""
    return element("img", src=f"data:image/png;base64,{base64.b64encode(data).decode()}", alt=alt, loading="lazy")


def themed(svg: str) -> Html:
    """A figure of ``plots`` whose colours are those of the page."""
    for color, name in _THEME.items():
        svg = svg.replace(color, f"var(--{name})")
    return Html(svg)


def render_page(title: str, header: Html, sections: Sequence[Section]) -> str:
    """The whole document."""
    contents = element("nav", *(element("a", s.title, href=f"#{s.anchor}") for s in sections), aria_label="Contents")
    body = element(
        "body",
        element("header", header, contents),
        element("main", *(element("section", element("h2", s.title), s.body, id=s.anchor) for s in sections)),
        element("div", id="tip", role="status", hidden=True),
        element("script", Html(SCRIPT)),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


STYLE = """
:root {
  --page: #f6f7f9; --paper: #ffffff; --ink: #1b2230; --muted: #667085; --line: #e4e8ef;
  --blue: #3b6ef5; --orange: #ef6c1a; --good: #1c9a70; --bad: #d8465c;
  --good-soft: #e3f4ed; --bad-soft: #fbe7ea; --blue-soft: #e6edfe;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10141b; --paper: #181d26; --ink: #e6e9ef; --muted: #97a1b3; --line: #2a313d;
    --blue: #6d95ff; --orange: #ff9350; --good: #3cc896; --bad: #ff6f85;
    --good-soft: #17362c; --bad-soft: #40212a; --blue-soft: #1e2a4a;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.6rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
    "Liberation Sans", sans-serif; }
header { display: contents; }
.top { max-width: 1160px; margin: 0 auto; padding: 2.2rem 1.25rem .9rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
.lead { margin: .35rem 0 0; color: var(--muted); overflow-wrap: anywhere; }
nav { position: sticky; top: 0; z-index: 2; background: color-mix(in srgb, var(--page) 92%, transparent);
  backdrop-filter: blur(8px); border-bottom: 1px solid var(--line); white-space: nowrap; overflow-x: auto;
  padding: .55rem max(1.25rem, calc((100% - 1160px) / 2 + 1.25rem)); scrollbar-width: none; }
nav a { color: var(--muted); text-decoration: none; margin-right: 1.3rem; font-size: .92rem; font-weight: 500; }
nav a:hover { color: var(--blue); }
main { max-width: 1160px; margin: 0 auto; padding: 1.1rem 1.25rem 4rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: 1.25rem 1.4rem 1.4rem;
  margin-top: 1.1rem; }
h2 { margin: 0 0 .9rem; font-size: 1.12rem; letter-spacing: -.005em; }
h3 { margin: 1.4rem 0 .6rem; font-size: .95rem; }
p { margin: 0 0 .8rem; }
.note { color: var(--muted); font-size: .92rem; margin: .2rem 0 .8rem; overflow-wrap: anywhere; }
.note:last-child { margin-bottom: 0; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin-bottom: 1.2rem; }
.card { flex: 1 1 225px; border: 1px solid var(--line); border-radius: 11px; padding: .8rem .95rem; min-width: 0; }
.card .label { color: var(--muted); font-size: .82rem; }
.card .value { font-size: 1.6rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.3;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.card .detail { color: var(--muted); font-size: .82rem; }
.card:first-child { background: var(--blue-soft); border-color: transparent; }
.scroll { overflow-x: auto; }
.tall { max-height: 34rem; overflow-y: auto; border: 1px solid var(--line); border-radius: 10px; }
.tall .scroll { overflow: visible; }
.tall th { position: sticky; top: 0; background: var(--paper); z-index: 1; box-shadow: inset 0 -1px var(--line); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .42rem .7rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
tbody tr:last-child td { border-bottom: 0; }
th { color: var(--muted); font-weight: 550; font-size: .84rem; white-space: nowrap; }
.number { text-align: right; }
td.path, code { overflow-wrap: anywhere;
  font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
.sortable th { cursor: pointer; user-select: none; }
.sortable th:hover { color: var(--ink); }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
.bar { display: inline-block; vertical-align: middle; width: 100%; min-width: 60px; height: 8px; border-radius: 4px;
  background: var(--blue-soft); overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 4px; background: var(--blue); }
.bar.good, .bar.bad { background: var(--line); }
.bar.good i { background: var(--good); } .bar.bad i { background: var(--bad); }
.meter { display: grid; grid-template-columns: minmax(60px, 1fr) 3.4em; gap: .6rem; align-items: center; }
.meter b { font-weight: 500; text-align: right; }
.plots { display: grid; gap: 1.3rem 1.6rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.plots.columns-3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.plot { position: relative; min-width: 0; }
.plot svg { display: block; width: 100%; height: auto; overflow: visible; }
.plot svg * { stroke-linejoin: round; stroke-linecap: butt; }
.plot text { font-family: inherit !important; }
.plot .cursor { position: absolute; pointer-events: none; background: var(--muted); width: 1px; opacity: .5; }
.plot .cell { position: absolute; pointer-events: none; outline: 2px solid var(--ink); border-radius: 2px; }
.split { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1.4rem; align-items: start; }
.split th, .split td { padding: .4rem .45rem; }
.split h3:first-child { margin-top: .2rem; }
.video { display: grid; grid-template-columns: minmax(0, 1fr) 300px; gap: .4rem 1.4rem; padding: 1.1rem 0;
  border-top: 1px solid var(--line); }
.video:first-of-type { border-top: 0; padding-top: .2rem; }
.video .head { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .2rem .7rem; align-items: baseline; }
.video .head code { color: var(--muted); }
.badge { font-size: .76rem; font-weight: 600; padding: .1rem .5rem; border-radius: 99px; }
.badge.good { color: var(--good); background: var(--good-soft); }
.badge.bad { color: var(--bad); background: var(--bad-soft); }
.guesses { align-self: center; }
.frames { display: grid; grid-template-columns: repeat(6, 1fr); gap: 4px; align-self: center; }
.frames img { width: 100%; height: auto; display: block; border-radius: 5px; background: var(--line); }
.guess { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .1rem .6rem; font-size: .88rem;
  margin-bottom: .5rem; }
.guess span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.guess .bar { grid-column: 1 / -1; }
.guess.good span:first-child { color: var(--good); font-weight: 600; }
.shelf { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; align-items: flex-start; }
.shelf.many { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); }
.shown { margin: 0; max-width: 100%; } .shown img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
.tools { display: flex; flex-wrap: wrap; gap: .6rem; margin-bottom: .8rem; }
input[type=search], button { font: inherit; font-size: .9rem; color: var(--ink); background: var(--paper);
  border: 1px solid var(--line); border-radius: 8px; padding: .3rem .7rem; }
button { cursor: pointer; }
button[aria-pressed=true] { background: var(--blue-soft); border-color: transparent; color: var(--blue); }
.js-only { display: none; } .js .js-only { display: flex; }
details summary { cursor: pointer; color: var(--muted); font-weight: 500; margin: .4rem 0; }
details[open] summary { margin-bottom: .7rem; }
pre { margin: 0; overflow: auto; max-height: 36rem; background: var(--page); border-radius: 10px; padding: .9rem 1rem;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
#tip { position: fixed; z-index: 3; pointer-events: none; background: var(--ink); color: var(--paper);
  font-size: .84rem; padding: .35rem .6rem; border-radius: 7px; max-width: 20rem; white-space: pre-line;
  line-height: 1.4; }
#tip[hidden] { display: none; }
@media (max-width: 1180px) { .split { grid-template-columns: minmax(0, 1fr); gap: 1.2rem; } }
@media (max-width: 860px) {
  .split, .plots, .plots.columns-3 { grid-template-columns: minmax(0, 1fr); gap: 1.2rem; }
  .video { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 560px) {
  .top { padding: 1.4rem 1rem .8rem; } main { padding: .6rem .6rem 3rem; } nav { padding: .55rem 1rem; }
  section { padding: 1rem .9rem 1.1rem; border-radius: 11px; margin-top: .7rem; }
  h1 { font-size: 1.4rem; } .frames { grid-template-columns: repeat(3, 1fr); }
  .cards { gap: .6rem; } .card { flex-basis: 40%; } .card .value { font-size: 1.3rem; }
  th, td { padding: .4rem .45rem; }
}
@media print { nav, .js .js-only { display: none; } section { break-inside: avoid; } .tall { max-height: none; } }
"""

SCRIPT = """
(() => {
  document.documentElement.classList.add("js");
  const tip = document.getElementById("tip");
  const show = (event, text) => {
    tip.textContent = text; tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(event.clientX + 14, innerWidth - box.width - 6)) + "px";
    const below = event.clientY + 16 + box.height < innerHeight;
    tip.style.top = (below ? event.clientY + 16 : event.clientY - box.height - 10) + "px";
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("th").forEach((head, column) => {
      const sort = () => {
        const up = head.getAttribute("aria-sort") === "descending";
        table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
        const order = (a, b) => {
          const [x, y] = [key(a), key(b)], [m, n] = [Number(x), Number(y)];
          return isNaN(m) || isNaN(n) ? -x.localeCompare(y) : m - n;
        };
        const rows = [...table.tBodies[0].rows].sort((a, b) => up ? order(a, b) : order(b, a));
        table.tBodies[0].append(...rows);
      };
      head.tabIndex = 0;
      head.addEventListener("click", sort);
      head.addEventListener("keydown", event => event.key === "Enter" && sort());
    });
  }

  for (const input of document.querySelectorAll("input[data-filter]")) {
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase();
      for (const row of document.getElementById(input.dataset.filter).tBodies[0].rows)
        row.hidden = !row.textContent.toLowerCase().includes(words);
    });
  }

  for (const button of document.querySelectorAll("button[data-show]")) {
    button.addEventListener("click", () => {
      for (const other of button.parentElement.children) other.setAttribute("aria-pressed", other === button);
      for (const video of document.querySelectorAll(".video"))
        video.hidden = button.dataset.show !== "all" && video.dataset.kind !== button.dataset.show;
    });
  }

  const inside = (plot, frame, event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width - frame.left) / frame.width;
    const y = ((event.clientY - box.top) / box.height - frame.top) / frame.height;
    return x >= 0 && x <= 1 && y >= 0 && y <= 1 ? [x, y] : null;
  };
  const watch = (plot, read, mark) => {
    const frame = JSON.parse(plot.dataset.frame);
    const leave = () => { tip.hidden = true; mark.hidden = true; };
    mark.hidden = true;
    plot.append(mark);
    plot.addEventListener("pointermove", event => {
      const at = inside(plot, frame, event), text = at && read(frame, ...at);
      if (text) { show(event, text); mark.hidden = false; } else leave();
    });
    plot.addEventListener("pointerleave", leave);
  };
  const place = (mark, box) => {
    for (const side in box) mark.style[side] = 100 * box[side] + "%";
  };
  const marker = name => Object.assign(document.createElement("div"), {className: name});

  for (const plot of document.querySelectorAll(".plot[data-curves]")) {
    const curves = JSON.parse(plot.dataset.curves), mark = marker("cursor");
    watch(plot, (frame, x) => {
      const epoch = frame.x[0] + x * (frame.x[1] - frame.x[0]);
      const lines = curves.map(curve => {
        let best = 0;
        curve.x.forEach((value, i) => { if (Math.abs(value - epoch) < Math.abs(curve.x[best] - epoch)) best = i; });
        return `${curve.label}: ${curve.y[best]}`;
      });
      place(mark, {left: frame.left + x * frame.width, top: frame.top, height: frame.height});
      return `epoch ${epoch.toFixed(1)}\\n` + lines.join("\\n");
    }, mark);
  }

  for (const plot of document.querySelectorAll(".plot[data-counts]")) {
    const names = JSON.parse(plot.dataset.names), count = names.length, mark = marker("cell");
    const totals = Array(count).fill(0), cells = new Map();
    for (const [row, column, videos] of JSON.parse(plot.dataset.counts)) {
      totals[row] += videos; cells.set(row * count + column, videos);
    }
    watch(plot, (frame, x, y) => {
      const column = Math.min(count - 1, Math.floor(x * count)), row = Math.min(count - 1, Math.floor(y * count));
      const videos = cells.get(row * count + column) ?? 0;
      place(mark, {left: frame.left + column / count * frame.width, top: frame.top + row / count * frame.height,
                   width: frame.width / count, height: frame.height / count});
      const verb = row === column ? "recognised" : `taken for ${names[column]}`;
      return `${names[row]}\\n${verb}: ${videos} of ${totals[row]}`;
    }, mark);
  }
})();
"""
