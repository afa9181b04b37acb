// The video with what lies over it: where the network looked, and boxes.

import { element } from "./api.js";

const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

/** Last index of sorted `values` that is not above `value`, at least 0. */
export function before(values, value) {
  let low = 0, high = values.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (values[middle] <= value) low = middle; else high = middle - 1;
  }
  return low;
}

/** Index of the sorted `values` that is nearest to `value`. */
export function nearest(values, value) {
  const k = before(values, value);
  return k + 1 < values.length && values[k + 1] - value < value - values[k] ? k + 1 : k;
}

// From blue through yellow to red, more opaque the higher.
const RAMP = [[40, 60, 190], [43, 176, 216], [242, 212, 60], [226, 53, 43]];
const SHADES = Array.from({ length: 256 }, (_, level) => {
  const place = (level / 255) * (RAMP.length - 1), k = Math.min(Math.floor(place), RAMP.length - 2), part = place - k;
  return [...RAMP[k].map((from, c) => Math.round(from + part * (RAMP[k + 1][c] - from))), Math.round(255 * Math.min(1, (level / 255) * 1.25))];
});

export class Player {
  constructor({ url, width, height, length_s: length }) {
    this.length = length;
    this.video = element("video", { src: url, muted: true, playsinline: true, preload: "auto", tabindex: "0", "aria-label": "Video; space plays and pauses it" });
    this.video.muted = true;
    this.video.loop = length < 8;
    this.canvas = element("canvas", { "aria-hidden": "true" });
    // As large as there is room for, in the shape of the video.
    this.stage = element("div", { class: "stage", style: { aspectRatio: `${width} / ${height}`, maxWidth: `calc(min(45vh, 520px) * ${width / height})` } }, this.video, this.canvas);
    this.play = element("button", { class: "primary", id: "play", onclick: () => this.toggle() }, "Play");
    this.time = element("span", { class: "time" });
    this.listeners = [];
    this.maps = null;
    this.pathway = "";
    this.opacity = 0.6;
    this.boxes = null;
    this.showBoxes = true;
    this.node = element("div", {}, this.stage, element("div", { class: "controls" }, this.play, this.time, this.speed(), this.loop()));
    this.listen();
  }

  speed() {
    const made = element("select", { "aria-label": "Speed", onchange: () => { this.video.playbackRate = Number(made.value); } },
      ["0.25", "0.5", "1", "2"].map((rate) => element("option", { value: rate, selected: rate === "1" }, `${rate} x`)));
    return made;
  }

  loop() {
    const made = element("input", { type: "checkbox", onchange: () => { this.video.loop = made.checked; } });
    made.checked = this.video.loop;
    return element("label", {}, made, "repeat");
  }

  listen() {
    const frame = () => {
      this.draw();
      if (!this.video.paused && this.stage.isConnected) requestAnimationFrame(frame);
    };
    this.video.addEventListener("play", () => { this.play.textContent = "Pause"; frame(); });
    this.video.addEventListener("pause", () => { this.play.textContent = "Play"; this.draw(); });
    for (const kind of ["seeked", "loadeddata", "timeupdate"]) this.video.addEventListener(kind, () => this.draw());
    this.video.addEventListener("click", () => this.toggle());
    this.video.addEventListener("error", () => this.stage.append(element("div", { class: "message" }, "This browser cannot play the video.")));
    this.video.addEventListener("keydown", (event) => {
      if (event.key === " ") this.toggle();
      else if (event.key === "ArrowLeft" || event.key === "ArrowRight") this.seek(this.video.currentTime + (event.key === "ArrowLeft" ? -1 : 1) * Math.max(this.length / 50, 0.1));
      else return;
      event.preventDefault();
    });
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  toggle() { if (this.video.paused) this.video.play().catch(() => {}); else this.video.pause(); }

  seek(seconds) { this.video.currentTime = Math.max(0, Math.min(this.length - 0.001, seconds)); }

  /** Call `listener(seconds)` whenever another moment is shown. */
  onTime(listener) { this.listeners.push(listener); listener(this.video.currentTime); }

  draw() {
    const now = this.video.currentTime;
    this.time.textContent = `${clock(now)} / ${clock(this.length)}`;
    const ratio = devicePixelRatio || 1, { width, height } = this.stage.getBoundingClientRect();
    if (this.canvas.width !== Math.round(width * ratio)) this.canvas.width = Math.round(width * ratio);
    if (this.canvas.height !== Math.round(height * ratio)) this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.scale(ratio, ratio);
    if (this.maps && this.pathway) this.drawMap(context, width, height, now);
    if (this.boxes && this.showBoxes) this.drawBoxes(context, width, height, now);
    for (const listener of this.listeners) listener(now);
  }

  /** Maps of each window: the window is that whose middle is nearest, the slice that whose time is. */
  setMaps(windows) {
    this.middles = windows.map(({ span }) => (span[0] + span[1]) / 2);
    this.maps = windows.map(({ maps }) => Object.fromEntries(Object.entries(maps).map(([name, map]) =>
      [name, { ...map, cells: Uint8Array.from(atob(map.data), (letter) => letter.charCodeAt(0)) }])));
    this.draw();
  }

  drawMap(context, width, height, now) {
    const map = this.maps[nearest(this.middles, now)][this.pathway];
    if (!map) return;
    const slice = nearest(map.times, now), size = map.rows * map.columns, image = new ImageData(map.columns, map.rows);
    for (let k = 0; k < size; k++) image.data.set(SHADES[map.cells[slice * size + k]], 4 * k);
    this.small ??= document.createElement("canvas");
    this.small.width = map.columns;
    this.small.height = map.rows;
    this.small.getContext("2d").putImageData(image, 0, 0);
    context.globalAlpha = this.opacity;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.small, 0, 0, width, height);
    context.globalAlpha = 1;
  }

  /** Boxes at key frames; second `second` is frame `frame` of a video of `fps` frames a second. */
  setBoxes({ second, frame, key_frames: keys }, fps) {
    const shift = frame / fps - second, times = keys.map((key) => key.second + shift);
    const gaps = times.slice(1).map((time, k) => time - times[k]);
    this.boxes = { keys, times, reach: Math.max(0.05, Math.min(...gaps, 1) / 2 + 0.01) };
    this.draw();
  }

  drawBoxes(context, width, height, now) {
    const { keys, times, reach } = this.boxes, k = nearest(times, now);
    if (!keys.length || Math.abs(times[k] - now) > reach) return;
    context.font = "600 12px system-ui, sans-serif";
    context.textBaseline = "top";
    const draw = (item, paint, dashed, below) => {
      const [x1, y1, x2, y2] = item.box.map((side, axis) => side * (axis % 2 ? height : width));
      context.strokeStyle = context.fillStyle = paint;
      context.lineWidth = 2;
      context.setLineDash(dashed ? [6, 4] : []);
      context.strokeRect(x1, y1, x2 - x1, y2 - y1);
      item.top.forEach(([name, score], row) => {
        const text = score === null ? name : `${name} ${score.toFixed(2)}`, room = context.measureText(text).width + 8;
        const left = Math.max(0, Math.min(x1, width - room));
        const above = y1 - 16 * (item.top.length - row);
        const y = below ? Math.min(y2 + 16 * row, height - 16 * (item.top.length - row)) : above < 0 ? Math.max(y1, 0) + 16 * row : above;
        context.fillStyle = paint;
        context.fillRect(left, y, room, 16);
        context.fillStyle = "#fff";
        context.fillText(text, left + 4, y + 2);
      });
    };
    for (const item of keys[k].true) draw(item, "#c2500a", true, true);
    for (const item of keys[k].found) draw(item, "#2f62ea", false, false);
  }
}
