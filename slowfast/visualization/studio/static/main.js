// Which page is shown: the part of the address after # says so, so that back, forward and bookmarks work.

import { ApiError, element, get, hideTip, problem } from "./api.js";
import { comparePage, runPage, runsPage } from "./runs.js";
import { receive, tryPage, videoPage } from "./video.js";

const PAGES = [
  [/^\/?$/, runsPage, "runs", "Runs"],
  [/^\/run\/([\w-]+)$/, runPage, "runs", "Run"],
  [/^\/compare\/([\w,-]+)$/, comparePage, "runs", "Compare"],
  [/^\/try(?:\/([\w-]+))?$/, tryPage, "try", "Your videos"],
  [/^\/video\/([\w-]+)(?:\/([\w-]+))?$/, videoPage, "", "Video"],
];

let main = document.getElementById("main");

async function show() {
  hideTip();
  main.dispatchEvent(new Event("leave"));
  // A new element: what still runs for the old page draws where nobody looks.
  const next = element("main", { id: "main", tabindex: "-1" });
  main.replaceWith(next);
  main = next;
  const path = decodeURIComponent(location.hash.slice(1));
  const [pattern, page, name, title] = PAGES.find(([tried]) => tried.test(path)) ?? [/(?:)/, lostPage, "", "Lost"];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  try {
    await page(next, ...(pattern.exec(path) ?? []).slice(1));
  } catch (error) {
    next.append(problem(error.message));
    if (!(error instanceof ApiError)) console.error(error);
  }
  const heading = next.querySelector("h1")?.textContent;
  document.title = heading ? `${heading} - Studio` : `${title} - Studio`;
  if (next === main) { next.dataset.ready = "yes"; dispatchEvent(new Event("shown")); }
}

async function lostPage(place) {
  place.append(element("h1", {}, "There is no such page"), element("p", {}, element("a", { href: "#/" }, "To the runs")));
}

// A video may be dropped anywhere.
const dropping = document.getElementById("dropping");
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragover", (event) => { if (hasFiles(event)) { event.preventDefault(); dropping.hidden = false; } });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) dropping.hidden = true; });
addEventListener("drop", (event) => {
  dropping.hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) receive(file);
});

addEventListener("hashchange", () => { show(); scrollTo(0, 0); });
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
get("/api/about").then(({ folder }) => { document.getElementById("folder").textContent = folder; }).catch(() => {});
show();
