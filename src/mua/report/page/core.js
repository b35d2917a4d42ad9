/* What every page is drawn with: the data, elements, numbers, the tooltip.

   The scripts of a page are put one after the other into one `<script>` (`shell.render`), in the order in
   which they need each other; this one comes first.

   Invariant: whatever a run recorded reaches the page as text nodes and attributes set one by one; there is
   no markup made from strings in any of these files. */
"use strict";

let DATA = JSON.parse(document.getElementById("data").textContent);
const STAGES = Object.keys(DATA.models);
const MINUS = "\u2212";

// ---------------------------------------------------------------- small helpers

/** An element: attributes (on… are listeners, null is left out), then children (strings become text). */
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}
function s(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}
const byId = (id) => document.getElementById(id);
const isNumber = (x) => typeof x === "number" && Number.isFinite(x);
/** Text with the characters that would not show, or would disorder what is around them (controls, direction
 *  overrides, half surrogate pairs), written out. */
const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g,
  (c) => (c === "\r" ? "" : `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`));
const clip = (text, most) => (text.length > most ? text.slice(0, most) + "…" : text);
const signed = (text) => text.replaceAll("-", MINUS);

/** A number with four significant digits at most; the exact value where that is shorter. */
function plain(x) {
  if (!isNumber(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size < 1e-4 || size >= 1e9) {
    const [digits, power] = x.toExponential(2).split("e");
    return signed(`${Number(digits)}e${Number(power)}`);
  }
  if (size >= 1000) return signed(Math.round(x).toLocaleString("en"));
  return signed(String(Number(x.toPrecision(4))));
}
const percent = (x) => (isNumber(x) ? (100 * x).toFixed(1) + "%" : "–");
const points = (x) => {
  if (!isNumber(x)) return "–";
  const text = (100 * x).toFixed(1);
  return Number(text) === 0 ? "0.0" : x > 0 ? "+" + text : signed(text);
};
const range = (ci, show) => `${show(ci[0])} to ${show(ci[1])}`;
function duration(seconds) {
  if (seconds < 90) return `${plain(Math.round(seconds * 10) / 10)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
const memory = (mb) => (mb >= 1024 ? `${(mb / 1024).toFixed(1)} GiB` : `${Math.round(mb)} MiB`);
function count(n) {
  if (typeof n !== "number") return String(n);
  if (n >= 1e9) return `${Number((n / 1e9).toPrecision(3))} B`;
  return n >= 1e6 ? `${Number((n / 1e6).toPrecision(3))} M` : n.toLocaleString("en");
}
const UNITS = { count, seconds: duration, mb: memory };
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const stageOf = (model) => (STAGES.includes(model) ? model : "other");
const stageColour = (model) => ({ base: "var(--base)", cold_start: "var(--cold)", rl: "var(--rl)" })[model] || "var(--s1)";

/** Every drawing that depends on the width, drawn again when its box changes. */
const watcher = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    if (Math.abs(contentRect.width - target.drawnAt) > 1) drawNow(target);
  }
});
function drawNow(box) {
  box.drawnAt = box.getBoundingClientRect().width;
  if (box.drawnAt > 20) box.redraw(box.drawnAt);
}
function responsive(box, redraw) {
  box.redraw = redraw;
  box.drawnAt = 0;
  watcher.observe(box);
  return box;
}

// ---------------------------------------------------------------- tooltip

const tip = byId("tip");
function showTip(rows, title, x, y) {
  tip.replaceChildren(
    h("div", { class: "at" }, title),
    ...rows.map((r) =>
      h("div", { class: "row" }, h("span", {}, r.colour && h("span", { class: "swatch", css: { background: r.colour } }), r.label), h("b", {}, r.value)),
    ),
  );
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth - 8 ? x - box.width - 14 : x + 14;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, Math.min(y - box.height / 2, innerHeight - box.height - 8))}px`;
}
const hideTip = () => (tip.hidden = true);
addEventListener("scroll", hideTip, { passive: true });
