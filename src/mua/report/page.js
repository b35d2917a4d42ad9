/* Draws the report from the JSON in the page.

   Invariant: whatever a run recorded reaches the page as text nodes and attributes set one by one; there is
   no markup made from strings anywhere in this file. */
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
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

// ---------------------------------------------------------------- line charts

/** Round ticks over [low, high]; `whole` keeps to integers. */
function ticks(low, high, wanted, whole) {
  const span = high - low || Math.abs(high) || 1;
  const rough = whole ? Math.max(1, span / wanted) : span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, whole && power < 10 ? 5 : 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough * 0.999);
  const out = [];
  for (let n = Math.floor(low / step + 1e-9); n * step <= high + step * 1e-6; n++) out.push(Number((n * step).toPrecision(12)));
  return out;
}
function logTicks(low, high) {
  const out = [];
  const leads = Math.log10(high / low) < 2.2 ? [1, 2, 5] : [1];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const m of leads) out.push(Number((m * 10 ** e).toPrecision(6)));
  return out.filter((t) => t >= low * 0.999 && t <= high * 1.001);
}
/** Weighted mean over neighbours; `sigma` in points. Gaps stay out of it. */
function smooth(values, sigma) {
  if (sigma < 0.3) return values;
  const reach = Math.ceil(3 * sigma);
  return values.map((v, i) => {
    if (!isNumber(v)) return null;
    let sum = 0, weight = 0;
    for (let j = Math.max(0, i - reach); j <= Math.min(values.length - 1, i + reach); j++) {
      if (!isNumber(values[j])) continue;
      const w = Math.exp(-((i - j) ** 2) / (2 * sigma * sigma));
      sum += w * values[j];
      weight += w;
    }
    return sum / weight;
  });
}
/** SVG path through the points that exist; a gap lifts the pen. */
function path(xs, ys) {
  let out = "", pen = false;
  for (let i = 0; i < xs.length; i++) {
    if (!isNumber(ys[i])) { pen = false; continue; }
    out += `${pen ? "L" : "M"}${xs[i].toFixed(1)} ${ys[i].toFixed(1)}`;
    pen = true;
  }
  return out;
}
const DASHES = ["", "", "", "", "7 3", "2 3", "9 3 2 3", ""];
const smoothing = { level: 3, charts: [] };

/** A figure with one or more lines over a common x.
 *  spec: {title, hint, xs, xName, lines: [{label, values, colour, dash}], show, stack: "area"|"bars"|undefined,
 *         log, smooth, wide, key}. `linked` is an array of charts that share the crosshair. */
function lineChart(spec, linked) {
  const hiddenLines = new Set();
  const readout = h("span", { class: "readout" });
  const plot = h("div", { class: "plot" });
  const show = spec.show || plain;
  const many = spec.lines.length > 1;
  const last = spec.xs.length - 1;
  let svg, cursor = null, geometry = null;

  const legend = many && h("div", { class: "legend" }, spec.lines.map((line, n) =>
    h("button", {
      type: "button", "aria-pressed": "true", title: "Show or hide this line",
      onclick: (event) => {
        if (hiddenLines.has(n)) hiddenLines.delete(n);
        else if (hiddenLines.size < spec.lines.length - 1) hiddenLines.add(n);
        event.currentTarget.setAttribute("aria-pressed", String(!hiddenLines.has(n)));
        plot.redraw(plot.drawnAt);
      },
    }, spec.stack
      ? h("span", { class: "swatch", css: { background: line.colour, width: "10px", height: "10px", "border-radius": "2px" } })
      : s("svg", { viewBox: "0 0 18 8", "aria-hidden": "true" }, s("line", { x1: 0, x2: 18, y1: 4, y2: 4, stroke: line.colour, "stroke-width": 2.2, "stroke-dasharray": line.dash || null })),
    h("span", { class: line.code ? "mono" : null }, line.label))));

  const rows = (i) => spec.lines.map((line, n) => ({ label: line.label, value: line.exact ? line.exact(i) : show(line.values[i]), colour: line.colour, n })).filter((r) => !hiddenLines.has(r.n));
  const words = (i) => `${spec.xName} ${plain(spec.xs[i])}: ` + rows(i).map((r) => (many ? `${r.label} ${r.value}` : r.value)).join(", ");

  function read(i) {
    if (many) readout.replaceChildren(i === null ? "" : `${spec.xName} ${plain(spec.xs[i])}`);
    else {
      // At rest, the last value there is: a step without a usable group measures nothing.
      const known = Math.max(0, spec.lines[0].values.findLastIndex(isNumber));
      const at = i === null ? known : i;
      readout.replaceChildren(i === null && known === last ? "" : `${spec.xName} ${plain(spec.xs[at])}\u2002`, h("span", {}, show(spec.lines[0].values[at])));
    }
  }
  function mark() {
    if (!geometry) return;
    geometry.overlay.replaceChildren();
    if (cursor === null) return;
    const x = geometry.x[cursor];
    geometry.overlay.append(s("line", { class: "cross", x1: x, x2: x, y1: geometry.top, y2: geometry.bottom }));
    if (!spec.stack) {
      spec.lines.forEach((line, n) => {
        const value = line.values[cursor];
        if (isNumber(value) && !hiddenLines.has(n)) geometry.overlay.append(s("circle", { cx: x, cy: geometry.y(value), r: 3.6, fill: line.colour, stroke: "var(--surface)", "stroke-width": 1.5 }));
      });
    }
  }
  const chart = {
    moveTo(i) {
      cursor = i;
      read(i);
      mark();
      if (svg) {
        svg.setAttribute("aria-valuenow", plain(spec.xs[i ?? last]));
        svg.setAttribute("aria-valuetext", words(i ?? last));
      }
    },
    redraw: () => plot.drawnAt && plot.redraw(plot.drawnAt),
  };
  linked.push(chart);
  if (spec.smooth) smoothing.charts.push(chart);

  function point(i, event) {
    for (const other of linked) other.moveTo(i);
    if (i === null) return hideTip();
    const box = svg.getBoundingClientRect();
    const x = event ? event.clientX : box.left + geometry.x[i];
    showTip(rows(i), `${spec.xName} ${plain(spec.xs[i])}`, x, event ? event.clientY : box.top + box.height / 2);
  }
  function nearest(event) {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * (geometry.width / box.width);
    let best = 0;
    for (let i = 1; i <= last; i++) if (Math.abs(geometry.x[i] - x) < Math.abs(geometry.x[best] - x)) best = i;
    return best;
  }
  function onKey(event) {
    const jump = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (event.key === "Escape") return point(null);
    if (jump === undefined && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault();
    const next = event.key === "Home" ? 0 : event.key === "End" ? last : Math.min(last, Math.max(0, (cursor ?? (jump < 0 ? last + 1 : -1)) + jump));
    point(next);
  }

  responsive(plot, (width) => {
    const height = spec.wide ? 190 : 140;
    const visible = spec.lines.filter((_, n) => !hiddenLines.has(n));
    const smoothed = visible.map((line) => (spec.smooth && !spec.stack ? smooth(line.values, (smoothing.level / 3) * Math.max(0.8, spec.xs.length / 50)) : line.values));
    let sums = null;
    if (spec.stack === "area") {
      // Cumulated from the first line upwards, as shares of the whole.
      sums = [spec.xs.map(() => 0)];
      visible.forEach((line) => sums.push(sums.at(-1).map((v, i) => v + (line.values[i] || 0))));
      const whole = sums.at(-1);
      sums = sums.map((row) => row.map((v, i) => (whole[i] ? v / whole[i] : 0)));
    }
    const every = (sums ? sums.flat() : visible.flatMap((line) => line.values)).filter(isNumber);
    let low = every.length ? Math.min(...every) : 0, high = every.length ? Math.max(...every) : 1;
    const log = spec.log && low > 0 && high / low > 20;
    if (!log && (spec.zero || (low > 0 && low < high * 0.35))) low = Math.min(0, low);
    if (spec.stack === "area") [low, high] = [0, 1];
    if (low === high) [low, high] = low ? [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1] : [0, 1];
    const at = log ? logTicks(low, high) : ticks(low, high, 3);
    if (!log) {
      const step = at.length > 1 ? at[1] - at[0] : high - low;
      if (at.at(-1) < high - step * 0.02 && !(spec.most !== undefined && at.at(-1) >= spec.most)) at.push(Number((at.at(-1) + step).toPrecision(12)));
      [low, high] = [Math.min(low, at[0]), Math.max(high, at.at(-1))];
    }
    const tickText = spec.axis || show;
    const left = Math.max(22, ...at.map((t) => tickText(t).length * 6.3 + 8)), right = 10, top = 8, bottom = height - 20;
    const scale = (v) => (log ? Math.log(v) - Math.log(low) : v - low) / (log ? Math.log(high) - Math.log(low) : high - low);
    const y = (v) => bottom - scale(v) * (bottom - top);
    const [x0, x1] = [spec.xs[0], spec.xs[last]];
    const slot = (width - left - right) / Math.max(1, spec.xs.length);
    const inset = spec.stack === "bars" ? slot / 2 : 0;
    const toX = (v) => (x1 === x0 ? (left + width - right) / 2 : left + inset + ((v - x0) / (x1 - x0)) * (width - left - right - 2 * inset));
    const x = spec.xs.map(toX);
    const marks = s("g", {});
    if (sums && last > 0) {
      visible.forEach((line, n) => {
        const upper = path(x, sums[n + 1].map(y)), lower = path([...x].reverse(), sums[n].map(y).reverse());
        marks.append(s("path", { d: `${upper}L${lower.slice(1)}Z`, fill: line.colour, stroke: "var(--surface)", "stroke-width": 0.8 }));
      });
    } else if (spec.stack) {
      // Bars stand beside each other; with one step an area has no width either.
      const bar = Math.max(1.5, Math.min(12, (slot * 0.8) / visible.length));
      visible.forEach((line, n) => (sums ? sums[n + 1].map((v, i) => v - sums[n][i]) : line.values).forEach((v, i) => {
        if (v > 0) marks.append(s("rect", { x: (x[i] + (n - visible.length / 2) * bar).toFixed(1), width: bar, y: y(v), height: bottom - y(v), fill: line.colour }));
      }));
    } else {
      visible.forEach((line, n) => {
        const raw = smoothed[n] !== line.values;
        if (raw && x.length <= 240) line.values.forEach((v, i) => isNumber(v) && marks.append(s("circle", { cx: x[i].toFixed(1), cy: y(v).toFixed(1), r: 1.5, fill: line.colour, "fill-opacity": many ? 0.28 : 0.4 })));
        else if (raw) marks.append(s("path", { d: path(x, line.values.map((v) => (isNumber(v) ? y(v) : null))), fill: "none", stroke: line.colour, "stroke-opacity": 0.25 }));
        marks.append(s("path", { d: path(x, smoothed[n].map((v) => (isNumber(v) ? y(v) : null))), fill: "none", stroke: line.colour, "stroke-width": 1.9, "stroke-linejoin": "round", "stroke-linecap": "round", "stroke-dasharray": line.dash || null }));
        const alone = (i) => !isNumber(line.values[i - 1]) && !isNumber(line.values[i + 1]);
        line.values.forEach((v, i) => isNumber(v) && (line.points || alone(i)) && marks.append(s("circle", { cx: x[i], cy: y(v), r: 3.2, fill: line.colour })));
      });
    }
    const xTicks = spec.whole ? spec.xs : ticks(x0, x1, Math.max(3, Math.floor(width / 110)), true).filter((t) => t >= x0 && t <= x1);
    const overlay = s("g", {});
    svg = s("svg", {
      viewBox: `0 0 ${width} ${height}`, class: "live", tabindex: 0, role: "slider", "data-chart": spec.key,
      "aria-label": `${spec.title}; arrow keys read the values`, "aria-valuemin": x0, "aria-valuemax": x1,
      onpointermove: (event) => point(nearest(event), event), onpointerdown: (event) => point(nearest(event), event),
      onpointerleave: () => point(null), onblur: () => point(null), onkeydown: onKey,
    },
    s("rect", { x: 0, y: 0, width, height, fill: "transparent" }),
    at.map((t) => [
      s("line", { class: t === at[0] && !log ? "axis" : "grid", x1: left, x2: width - right, y1: y(t), y2: y(t) }),
      s("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, tickText(t)),
    ]),
    !spec.whole && toX(xTicks[0] ?? x1) > left + 44 && s("text", { x: left, y: height - 4 }, spec.xName),
    xTicks.map((t) => s("text", { x: toX(t), y: height - 4, "text-anchor": toX(t) > width - 24 && !spec.whole ? "end" : "middle" }, plain(t))),
    marks, overlay);
    geometry = { x, y, top, bottom, width, overlay };
    const focused = plot.contains(document.activeElement);
    plot.replaceChildren(svg);
    if (focused) svg.focus({ preventScroll: true });
    chart.moveTo(cursor);
  });
  read(null);
  return h("figure", { class: "chart" + (spec.wide ? " wide" : "") },
    h("figcaption", {}, h("b", {}, spec.title), readout), spec.hint && h("p", { class: "hint" }, spec.hint), legend, plot);
}

// ---------------------------------------------------------------- header

function hero() {
  const { done, planned } = DATA.steps;
  const state = DATA.finished ? h("span", { class: "pill" }, "finished")
    : h("span", { class: "pill running" }, done ? `step ${done}${planned ? ` of ${planned}` : ""}, not finished` : "not finished");
  fill(byId("hero"), {}, [
    h("div", { class: "eyebrow" }, h("span", {}, "Run ", h("b", {}, DATA.title)), state),
    h("h1", {}, DATA.headline.text),
    h("p", { class: "how" }, DATA.headline.how),
    DATA.facts.length ? h("dl", { class: "facts" }, DATA.facts.map(([label, value, unit]) =>
      h("div", {}, h("dt", {}, label), h("dd", { "data-fact": label }, (UNITS[unit] || String)(value))))) : null,
  ]);
}

// ---------------------------------------------------------------- results

/** Reasons in the order in which they are stacked, with their colour and meaning. */
const ENDINGS = {
  user_stop: ["var(--end-user)", "the user ended the conversation"],
  agent_transfer: ["var(--end-transfer)", "the agent handed over to a human"],
  turn_cap: ["var(--end-turns)", "the agent used all its turns or steps"],
  token_cap: ["var(--end-tokens)", "a token limit was reached"],
  too_many_errors: ["var(--end-errors)", "too many calls failed"],
  user_failed: ["var(--end-infra)", "the user model failed"],
  tools_failed: ["var(--end-infra)", "a tool was out of order"],
  engine_failed: ["var(--end-infra)", "the engine failed"],
};
const endingOrder = (names) => [...new Set(names)].sort((a, b) => {
  const known = Object.keys(ENDINGS), place = (n) => (known.includes(n) ? known.indexOf(n) : known.length);
  return place(a) - place(b) || a.localeCompare(b);
});
const endingColour = (name) => (ENDINGS[name] || ["var(--s7)"])[0];
const spaced = (name) => name.replaceAll("_", " ");

function stageEval(group, model) {
  const found = group && group.evals.find((i) => DATA.evals[i].model === model);
  return found === undefined || found === null ? null : DATA.evals[found];
}
const figure = (e) => e.name;

function results() {
  const box = byId("results");
  const groups = DATA.groups;
  if (!groups.length) {
    box.append(h("p", { class: "empty" }, "No evaluation has finished yet. It appears here as soon as eval/ holds one."));
    return;
  }
  const [main, ...others] = groups;
  const beside = others.filter((g) => g.domain === main.domain && g.split === main.split);
  box.append(h("p", { class: "lead" }, `Share of tasks solved, ${main.title.toLowerCase()}`,
    beside.length ? `; ${beside.map((g) => g.title.toLowerCase()).join(", ")} below it` : "", ". Intervals are 95% over tasks."));
  const stages = STAGES.filter((m) => groups.some((g) => stageEval(g, m)) || m !== "base");
  const big = (text, unit) => [text.replace(/%$/, ""), h("small", {}, unit)];
  box.append(h("div", { class: "tiles", css: stages.length === 2 ? { "grid-template-columns": "repeat(auto-fit, minmax(180px, 1fr))" } : {} },
    stages.map((model) => {
      const e = stageEval(main, model);
      return h("div", { class: "tile", "data-stage": model }, h("div", { class: "name" }, DATA.models[model]),
        e ? [h("div", { class: "big", "data-figure": figure(e) }, big(percent(e.success), "%")),
          h("div", { class: "interval" }, e.ci95 ? range(e.ci95, percent) : "no interval")]
          : h("div", { class: "none" }, "not evaluated yet"),
        beside.map((g) => [g, stageEval(g, model)]).filter(([, x]) => x).map(([g, x]) =>
          h("div", { class: "other" }, h("span", {}, g.title), h("span", {}, h("b", { "data-figure": figure(x) }, percent(x.success))))));
    }),
    h("div", { class: "tile" }, h("div", { class: "name" }, main.gain ? `${label(main.after)} over ${label(main.before).toLowerCase()}` : "Gain"),
      main.gain ? [h("div", { class: "big", "data-figure": "gain" }, points(main.gain.points), h("small", {}, " points")),
        h("div", { class: "interval" }, main.gain.low === null ? "no interval" : range([main.gain.low, main.gain.high], points))]
        : h("div", { class: "none" }, "needs an evaluation before and after RL"),
      beside.filter((g) => g.gain).map((g) => h("div", { class: "other" }, h("span", {}, g.title), h("span", {}, h("b", { "data-figure": "gain " + g.title }, points(g.gain.points))))))));
  box.append(h("div", { class: "two" }, groups.map(barPanel)));
  const multi = groups.filter((g) => g.evals.some((i) => Object.keys(DATA.evals[i].pass_k).length > 1));
  box.append(h("div", { class: "two" }, multi.map(passPanel), endingsPanel()));
  box.append(faultsPanel(), detailsTable());
}
const label = (i) => DATA.evals[i].label;
const inText = (stage) => ({ Base: "the base model", "Cold start": "the cold start" })[stage] || stage;

/** Bars with 95 % intervals for the evaluations of one group. */
function barPanel(group) {
  const plot = h("div", {});
  const rows = group.evals.map((i) => DATA.evals[i]);
  const twice = new Set(rows.map((e) => e.model).filter((m, n, all) => all.indexOf(m) !== n));
  const named = (e) => (twice.has(e.model) ? e.name : e.label);
  responsive(plot, (width) => {
    const left = Math.min(width * 0.4, 14 + 7.4 * Math.max(...rows.map((e) => named(e).length))), right = 56, row = 42, height = rows.length * row + 24;
    const x = (v) => left + v * (width - left - right);
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": rows.map((e) => `${named(e)} ${percent(e.success)}${e.ci95 ? `, interval ${range(e.ci95, percent)}` : ""}`).join("; ") },
      [0, 0.25, 0.5, 0.75, 1].map((t) => [
        s("line", { class: t ? "grid" : "axis", x1: x(t), x2: x(t), y1: 2, y2: height - 20 }),
        s("text", { x: x(t), y: height - 4, "text-anchor": "middle" }, `${100 * t}${t === 1 ? "%" : ""}`),
      ]),
      rows.map((e, n) => {
        const middle = n * row + row / 2 + 2;
        return s("g", {},
          s("text", { class: "label", x: 0, y: middle + 4.5 }, named(e)),
          s("rect", { x: x(0), y: middle - 11, width: Math.max(0, x(e.success) - x(0)), height: 22, rx: 2, fill: stageColour(e.model) }),
          e.ci95 && s("path", { d: `M${x(e.ci95[0])} ${middle}H${x(e.ci95[1])}M${x(e.ci95[0])} ${middle - 5}v10M${x(e.ci95[1])} ${middle - 5}v10`, stroke: "var(--surface)", "stroke-width": 3.6, fill: "none", "stroke-opacity": 0.55 }),
          e.ci95 && s("path", { d: `M${x(e.ci95[0])} ${middle}H${x(e.ci95[1])}M${x(e.ci95[0])} ${middle - 5}v10M${x(e.ci95[1])} ${middle - 5}v10`, stroke: "var(--ink)", "stroke-width": 1.5, fill: "none" }),
          s("text", { class: "strong", x: width, y: middle + 4.5, "text-anchor": "end" }, percent(e.success)));
      }));
    plot.replaceChildren(svg);
  });
  const [fewest, most] = [Math.min, Math.max].map((f) => f(...rows.map((e) => e.n).filter(isNumber)));
  const n = Number.isFinite(most), samples = rows[0].samples;
  return h("div", { class: "panel" }, h("header", {}, h("b", {}, group.title),
    h("span", { class: "hint" }, n ? `${fewest < most ? `${fewest} to ` : ""}${plural(most, "task")}${samples > 1 ? ` × ${samples} samples` : ""}` : "")), plot);
}

function passPanel(group) {
  const rows = group.evals.map((i) => DATA.evals[i]).filter((e) => Object.keys(e.pass_k).length);
  const ks = [...new Set(rows.flatMap((e) => Object.keys(e.pass_k).map(Number)))].sort((a, b) => a - b);
  const columns = ks.length > 6 ? ks.filter((k) => Number.isInteger(Math.log2(k)) || k === ks.at(-1)) : ks;
  const chart = lineChart({
    title: "pass^k", hint: "Chance that k tries at a task all succeed.", key: "pass_k", xs: ks, xName: "k =", whole: true, zero: true, most: 1,
    show: percent, axis: (v) => `${Math.round(100 * v)}%`,
    lines: rows.map((e) => ({ label: e.label, colour: stageColour(e.model), values: ks.map((k) => e.pass_k[k] ?? null), points: true })),
  }, []);
  chart.classList.remove("chart");
  return h("div", { class: "panel" }, chart, h("div", { class: "scroll" }, h("table", { "data-table": "pass_k" },
    h("thead", {}, h("tr", {}, h("th", {}, group.title), columns.map((k) => h("th", { scope: "col" }, `k = ${k}`)))),
    h("tbody", {}, rows.map((e) => h("tr", { "data-stage": stageOf(e.model) }, h("th", { scope: "row" }, h("span", { class: "dot" }), e.label), columns.map((k) => h("td", {}, percent(e.pass_k[k])))))))));
}

/** How the evaluation's conversations ended: one stacked bar for each evaluation. */
function endingsPanel() {
  const rows = DATA.evals.map((e, i) => ({ e, name: DATA.sources[i], total: Object.values(e.terminations).reduce((a, b) => a + b, 0) })).filter((r) => r.total > 0);
  if (!rows.length) return null;
  const names = endingOrder(rows.flatMap((r) => Object.keys(r.e.terminations)));
  const plot = h("div", {});
  responsive(plot, (width) => {
    const row = 44;
    plot.replaceChildren(s("svg", { viewBox: `0 0 ${width} ${rows.length * row}`, role: "img", "aria-label": "How conversations ended" }, rows.map((r, n) => {
      let from = 0;
      return s("g", {}, s("text", { class: "label", x: 0, y: n * row + 13 }, r.name), s("text", { x: width, y: n * row + 13, "text-anchor": "end" }, plural(r.total, "conversation")),
        names.map((name) => {
          const share = (r.e.terminations[name] || 0) / r.total;
          const piece = s("rect", { x: from * width, y: n * row + 19, width: share * width, height: 15, fill: endingColour(name),
            onpointermove: (event) => showTip(names.filter((x) => r.e.terminations[x]).map((x) => ({ label: spaced(x), value: `${r.e.terminations[x]} (${percent(r.e.terminations[x] / r.total)})`, colour: endingColour(x) })), r.name, event.clientX, event.clientY), onpointerleave: hideTip });
          from += share;
          return share ? piece : null;
        }));
    })));
  });
  return h("div", { class: "panel" }, h("header", {}, h("b", {}, "How conversations ended")),
    h("div", { class: "legend" }, names.map((n) => h("span", { class: "key", title: (ENDINGS[n] || [])[1] }, h("span", { class: "swatch", css: { background: endingColour(n), width: "10px", height: "10px", "border-radius": "2px" } }), spaced(n)))), plot);
}

/** Success with and without a misbehaving environment, where both were measured. */
function faultsPanel() {
  if (!DATA.faults.length) return "";
  const cells = (r) => {
    const [a, b] = [r.without, r.with].map((i) => DATA.evals[i]), f = b.faults;
    const change = r.change.low === null ? points(r.change.points) : `${points(r.change.points)} (${range([r.change.low, r.change.high], points)})`;
    const share = (x) => (x.episodes ? `${percent(x.success)} of ${plain(x.episodes)}` : "–");
    const seconds = f.counts.seconds;
    const counted = Object.entries(f.counts).filter(([kind]) => kind !== "seconds").map(([kind, n]) => `${spaced(kind)} ${plain(n)}`);
    return [f.label, percent(a.success), percent(b.success), change, share(f.hit), share(f.spared), [...counted, ...(seconds ? [duration(seconds)] : [])].join(", ") || "none"];
  };
  const title = (i) => DATA.groups.find((g) => g.evals.includes(i)).title.toLowerCase();
  const heads = ["faults", "without", "with", "difference", "episodes hit", "episodes spared", "what happened"];
  return h("div", { class: "panel", css: { "margin-top": "16px" } }, h("header", {}, h("b", {}, "With and without a misbehaving environment"),
    h("span", { class: "hint" }, "Calls refused, slow or out of date, answers in another shape. Differences pair the tasks.")),
    h("div", { class: "scroll" }, h("table", { "data-table": "faults" }, h("thead", {}, h("tr", {}, h("th", {}, "evaluation"), heads.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, DATA.faults.map((r) => h("tr", { "data-stage": stageOf(DATA.evals[r.with].model) }, h("th", { scope: "row" }, h("span", { class: "dot" }), `${label(r.with)} · ${title(r.without)}`), cells(r).map((c) => h("td", {}, c))))))));
}

function detailsTable() {
  const columns = [
    ["success", (e) => percent(e.success)], ["95% interval", (e) => (e.ci95 ? range(e.ci95, percent) : "–")], ["tasks", (e) => plain(e.n)], ["samples", (e) => plain(e.samples)],
    ["user turns", (e) => (isNumber(e.turns) ? e.turns.toFixed(2) : "–")], ["agent tokens / episode", (e) => plain(e.agent_tokens_per_episode)], ["left out", (e) => plain(e.excluded)],
    ["user", (e) => e.user || "–"], ["time", (e) => (isNumber(e.seconds) ? duration(e.seconds) : "–")],
  ];
  return h("details", { class: "fold" }, h("summary", {}, "All evaluations in figures"), h("div", { class: "scroll", css: { padding: "0 18px 10px" } },
    h("table", { "data-table": "evals" }, h("thead", {}, h("tr", {}, h("th", {}, "evaluation"), columns.map(([name]) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, DATA.evals.map((e) => h("tr", { "data-stage": stageOf(e.model) }, h("th", { scope: "row" }, h("span", { class: "dot" }), e.name), columns.map(([, get]) => h("td", {}, get(e)))))))));
}

// ---------------------------------------------------------------- kinds

function kinds() {
  const box = byId("kinds");
  const usable = DATA.groups.filter((g) => g.kinds.length);
  if (!usable.length) {
    box.append(h("p", { class: "empty" }, "No results by kind of task yet."));
    return;
  }
  const place = h("div", { class: "panel", css: { "margin-top": "16px" } });
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": "Sampling" }, usable.map((g, n) =>
    h("button", { type: "button", "aria-pressed": String(n === 0), onclick: (event) => {
      for (const b of tabs.children) b.setAttribute("aria-pressed", String(b === event.currentTarget));
      place.replaceChildren(kindTable(g));
    } }, g.title)));
  box.append(h("div", { class: "head" }, h("p", { class: "lead", css: { color: "var(--muted)" } }, "Share of tasks solved." + (usable[0].gain ? ` The line runs from ${inText(label(usable[0].before))} to ${label(usable[0].after)}.` : "")), usable.length > 1 ? tabs : null), place);
  place.append(kindTable(usable[0]));
}

function kindTable(group) {
  const stages = group.evals.filter((i, n, all) => STAGES.includes(DATA.evals[i].model) && all.findIndex((j) => DATA.evals[j].model === DATA.evals[i].model) === n);
  const shown = stages.length ? stages : group.evals;
  const body = h("tbody", {});
  const keys = { kind: (r) => r.kind, n: (r) => r.n, gain: (r) => r.gain };
  for (const i of shown) keys["v" + i] = (r) => r.values[i];
  let sorted = "gain", way = -1;
  const heads = new Map();
  const head = (key, text) => {
    const cell = h("th", { scope: "col" }, h("button", { type: "button", onclick: () => { way = sorted === key ? -way : key === "kind" ? 1 : -1; sorted = key; draw(); } }, text));
    heads.set(key, cell);
    return cell;
  };
  function draw() {
    for (const [key, cell] of heads) {
      if (key === sorted) cell.setAttribute("aria-sort", way < 0 ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    const missing = (v) => v === null || v === undefined;
    const rows = [...group.kinds].sort((a, b) => {
      const [x, y] = [keys[sorted](a), keys[sorted](b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return way * (x < y ? -1 : x > y ? 1 : 0) || a.kind.localeCompare(b.kind);
    });
    body.replaceChildren(...rows.map((r) => h("tr", { "data-kind": r.kind }, h("th", { scope: "row" }, r.kind || "–"), h("td", { class: "n" }, plain(r.n)), h("td", { class: "range" }, span(r)),
      shown.map((i) => h("td", {}, percent(r.values[i]))), h("td", { class: isNumber(r.gain) && r.gain < 0 ? "minus" : "plus" }, points(r.gain)))));
  }
  /** Dots for each stage on a line from 0 to 100 %. */
  function span(r) {
    const x = (v) => 6 + 288 * v;
    const [a, b] = [group.before, group.after].map((i) => (i === null ? null : r.values[i]));
    return s("svg", { viewBox: "0 0 300 16", preserveAspectRatio: "none", height: 16, "aria-hidden": "true", css: { height: "16px" } },
      s("line", { class: "grid", x1: x(0), x2: x(1), y1: 8, y2: 8 }),
      isNumber(a) && isNumber(b) && s("line", { x1: x(a), x2: x(b), y1: 8, y2: 8, stroke: b < a ? "var(--bad)" : "var(--rl)", "stroke-width": 3, "stroke-opacity": 0.45 }),
      // Dots are zero-length round strokes that keep their shape when the row is stretched.
      shown.filter((i) => isNumber(r.values[i])).map((i) => s("line", { x1: x(r.values[i]), x2: x(r.values[i]), y1: 8, y2: 8.01, stroke: stageColour(DATA.evals[i].model), "stroke-width": 11, "stroke-linecap": "round", "vector-effect": "non-scaling-stroke" })));
  }
  const table = h("div", { class: "scroll" }, h("table", { "data-table": "kinds" }, h("thead", {}, h("tr", {}, head("kind", "kind"), fill(head("n", "tasks"), { class: "n" }, []), h("th", { class: "range", "aria-hidden": "true" }),
    shown.map((i) => head("v" + i, DATA.evals[i].label)), head("gain", "gain"))), body));
  draw();
  return table;
}

// ---------------------------------------------------------------- training

function training() {
  const box = byId("training");
  const lines = DATA.metrics;
  const sft = Object.entries(DATA.sft).filter(([, rows]) => rows.length);
  if (!lines.length && !sft.length) {
    box.append(h("p", { class: "empty" }, "No training has been logged: neither metrics.jsonl nor sft_agent.jsonl holds a line."));
    return;
  }
  const slider = h("input", { type: "range", min: 0, max: 12, value: smoothing.level, id: "smooth", oninput: () => {
    smoothing.level = Number(slider.value);
    smoothing.charts.forEach((c) => c.redraw());
  } });
  box.append(h("div", { class: "head" },
    h("p", { class: "lead", css: { color: "var(--muted)", "max-width": "46em" } }, "Point at a chart, or focus it and use the arrow keys: all charts of a phase show the same step."),
    h("label", { class: "hint smooth" }, "Smoothing ", slider)));
  if (lines.length) rlCharts(box, lines);
  else box.append(h("p", { class: "empty" }, "RL has not started: metrics.jsonl holds no step."));
  if (sft.length) {
    box.append(h("h3", { class: "group-title" }, "Cold start (supervised fine-tuning)"), h("div", { class: "charts halves" }, sft.flatMap(([side, rows]) => {
      const common = { xs: rows.map((r) => r.step), xName: "step", smooth: true };
      const linked = [];
      return [
        lineChart({ ...common, key: `sft_${side}`, title: side === "agent" ? "Agent: loss" : "User model: loss", hint: "Nats a token.", log: true, lines: [{ label: "loss", values: rows.map((r) => r.loss), colour: side === "agent" ? "var(--cold)" : "var(--s1)" }] }, linked),
        lineChart({ ...common, key: `sft_${side}_lr`, smooth: false, title: side === "agent" ? "Agent: learning rate" : "User model: learning rate", hint: speed(rows), zero: true, lines: [{ label: "lr", values: rows.map((r) => r.lr), colour: "var(--s7)" }] }, linked),
      ];
    })));
  }
}
function speed(rows) {
  const last = rows.at(-1).tokens_per_second;
  return isNumber(last) ? `${count(Math.round(last))} tokens a second at the end.` : "";
}

function rlCharts(box, lines) {
  const linked = [];
  const get = (key) => lines.map((l) => (isNumber(l[key]) ? l[key] : null));
  const common = { xs: lines.map((l) => l.step), xName: "step" };
  const share = { show: percent, axis: (v) => `${Number((100 * v).toPrecision(3))}%`, zero: true, most: 1 };
  const has = (...keys) => keys.some((k) => lines.some((l) => isNumber(l[k])));
  const line = (key, title, hint, more = {}) => has(key) && lineChart({ ...common, key, title, hint, smooth: true, lines: [{ label: title, values: get(key), colour: more.colour || "var(--rl)" }], ...more }, linked);
  const several = (key, title, hint, parts, more = {}) => has(...parts.map((p) => p[0])) && lineChart({ ...common, key, title, hint, smooth: true, lines: parts.map(([k, text, colour, dash]) => ({ label: text, values: get(k), colour, dash })), ...more }, linked);
  const section = (title, ...charts) => {
    const drawn = charts.filter(Boolean);
    if (drawn.length) box.append(h("h3", { class: "group-title" }, title), h("div", { class: "charts" }, drawn));
  };
  section("Outcome",
    line("reward", "Reward", "Mean over the episodes of a step.", { show: plain }),
    several("queries", "All-correct and all-wrong queries", "Share of groups whose episodes all succeed, or all fail.", [["all_correct", "all correct", "var(--good)"], ["all_wrong", "all wrong", "var(--bad)", "6 3"]], share),
    several("groups", "Groups", "Only groups with both outcomes carry a signal.", [["groups_played", "played", "var(--s7)", "6 3"], ["groups_trained", "trained on", "var(--rl)"]], { zero: true }),
    kindHeat(lines));
  section("Behaviour",
    line("turns", "User turns", "Mean an episode."),
    line("agent_steps", "Agent steps", "Generations an episode, tool calls included."),
    line("tokens_per_step", "Agent tokens a step", "Mean length of one generation."),
    toolChart(lines, common, linked), endingChart(lines, common, linked));
  section("Optimisation",
    line("kl", "KL", "To the reference, the cold-start model.", { zero: true }),
    line("entropy", "Entropy", "Over trained tokens only, nats.", { zero: true }),
    line("grad_norm", "Gradient norm", "Before clipping.", { zero: true }),
    line("clip_fraction", "Clip fraction", "Share of tokens at the ratio's bound.", { ...share, most: undefined, show: (v) => (isNumber(v) ? plain(100 * v) + "%" : "–") }),
    line("sampling_gap", "Sampling gap", "Mean |log-probability in training − in sampling|.", { zero: true }),
    line("loss", "Loss", "Of the update; its level means little in GRPO."));
  section("Running",
    several("infrastructure", "Left out and retried", "Episodes that infrastructure broke; none is scored.", [["excluded", "left out", "var(--bad)"], ["retried", "retried", "var(--s7)"]], { stack: "bars", zero: true, smooth: false }),
    several("seconds", "Seconds a step", "", [["seconds_rollout", "rollout", "var(--s1)"], ["seconds_update", "update", "var(--s2)", "6 3"]], { zero: true, show: (v) => (isNumber(v) ? plain(v) + " s" : "–"), axis: plain }),
    has("peak_mb") && lineChart({ ...common, key: "peak_mb", title: "Peak memory", hint: "GiB, so far.", zero: true, axis: plain, show: (v) => (isNumber(v) ? `${v.toFixed(2)} GiB` : "–"),
      lines: [{ label: "peak", values: get("peak_mb").map((v) => (v === null ? null : v / 1024)), colour: "var(--s4)" }] }, linked));
}

function toolChart(lines, common, linked) {
  const totals = new Map();
  for (const l of lines) for (const [name, v] of Object.entries(l.tool_calls || {})) if (isNumber(v)) totals.set(name, (totals.get(name) || 0) + v);
  if (!totals.size) return null;
  const names = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a));
  const own = names.length > 8 ? names.slice(0, 7) : names;
  const rest = names.slice(own.length);
  const of = (l, name) => (l.tool_calls ? l.tool_calls[name] || 0 : null);
  const drawn = own.map((name, n) => ({ label: name, code: true, values: lines.map((l) => of(l, name)), colour: `var(--s${n})`, dash: DASHES[n] }));
  if (rest.length) drawn.push({ label: `${rest.length} other tools`, values: lines.map((l) => (l.tool_calls ? rest.reduce((sum, r) => sum + of(l, r), 0) : null)), colour: "var(--s7)" });
  return lineChart({ ...common, key: "tool_calls", title: "Calls of each tool", hint: "Mean calls an episode.", smooth: true, wide: true, zero: true, lines: drawn }, linked);
}

function endingChart(lines, common, linked) {
  const names = endingOrder(lines.flatMap((l) => Object.keys(l.terminations || {})));
  if (!names.length) return null;
  const total = (l) => Object.values(l.terminations || {}).reduce((a, b) => a + b, 0);
  return lineChart({
    ...common, key: "terminations", title: "How conversations ended", hint: "Share of the episodes of a step.", stack: "area", wide: true, axis: (v) => `${Math.round(100 * v)}%`,
    lines: names.map((name) => ({ label: spaced(name), colour: endingColour(name), values: lines.map((l) => (l.terminations || {})[name] || 0),
      exact: (i) => { const n = (lines[i].terminations || {})[name] || 0; return `${n} (${percent(n / (total(lines[i]) || 1))})`; } })),
  }, linked);
}

/** Mean reward of each kind over the run: rows are kinds, columns are steps put together. */
function kindHeat(lines) {
  const names = [...new Set(lines.flatMap((l) => Object.keys(l.by_kind || {})))];
  if (names.length < 2 || lines.length < 2) return null;
  const bins = Math.min(lines.length, 40);
  const table = names.map((name) => Array.from({ length: bins }, (_, b) => {
    const part = lines.slice(Math.floor((b * lines.length) / bins), Math.floor(((b + 1) * lines.length) / bins)).map((l) => (l.by_kind || {})[name]).filter(isNumber);
    return part.length ? part.reduce((x, y) => x + y, 0) / part.length : null;
  }));
  const final = (row) => row.filter(isNumber).at(-1) ?? -1;
  const order = names.map((_, n) => n).sort((a, b) => final(table[b]) - final(table[a]));
  const span = (b) => [lines[Math.floor((b * lines.length) / bins)].step, lines[Math.floor(((b + 1) * lines.length) / bins) - 1].step];
  const plot = h("div", { class: "plot" });
  responsive(plot, (width) => {
    const left = Math.min(width * 0.3, 12 + 6.6 * Math.max(...names.map((n) => n.length))), right = 44, row = 17, cell = (width - left - right) / bins;
    plot.replaceChildren(s("svg", { viewBox: `0 0 ${width} ${names.length * row + 18}`, role: "img", "aria-label": "Reward by kind: " + order.map((n) => `${names[n]} ${percent(table[n].find(isNumber))} to ${percent(final(table[n]))}`).join(", ") },
      order.map((n, r) => [
        s("text", { x: left - 8, y: r * row + 12, "text-anchor": "end" }, names[n].length * 6.6 > left ? names[n].slice(0, Math.floor(left / 6.6) - 1) + "…" : names[n]),
        table[n].map((v, b) => isNumber(v) && s("rect", { x: left + b * cell, y: r * row, width: Math.max(0.5, cell - 0.6), height: row - 2, fill: `color-mix(in oklab, var(--rl) ${(4 + 92 * Math.max(0, Math.min(1, v))).toFixed(0)}%, var(--sunken))`,
          onpointermove: (event) => { const [from, to] = span(b); showTip([{ label: names[n], value: percent(v) }], from === to ? `step ${from}` : `steps ${from} to ${to}`, event.clientX, event.clientY); }, onpointerleave: hideTip })),
        s("text", { x: width, y: r * row + 12, "text-anchor": "end" }, percent(final(table[n]))),
      ]),
      [0, bins - 1].map((b) => s("text", { x: left + (b ? bins * cell : 0), y: names.length * row + 13, "text-anchor": b ? "end" : "start" }, `step ${span(b)[b ? 1 : 0]}`))));
  });
  return h("figure", { class: "chart wide" }, h("figcaption", {}, h("b", {}, "Reward by kind"), h("span", { class: "readout" }, "at the end")), h("p", { class: "hint" }, "Mean reward in training; the fuller the colour, the more is solved."), plot);
}

// ---------------------------------------------------------------- conversations

const outcome = (c) => (c.reward === null ? "unscored" : c.solved ? "good" : "bad");
const OUTCOMES = { good: ["\u2713", "Solved"], bad: ["\u2717", "Failed"], unscored: ["\u2013", "Not scored"] };
const modelOf = (c) => (DATA.evals[c.eval] ? DATA.evals[c.eval].model : "rl");

function talk(c, parted) {
  const box = h("article", { class: "talk", "data-stage": stageOf(modelOf(c)) });
  box.append(h("header", {}, h("b", {}, h("span", { class: "dot" }), DATA.sources[c.eval]),
    h("span", { class: "hint" }, `${c.kind} · ${c.task}${c.sample ? ` · sample ${c.sample}` : ""}${c.step >= 0 ? ` · step ${c.step}` : ""}`)));
  if (c.prompt !== null) {
    const text = DATA.prompts[c.prompt];
    box.append(h("details", {}, h("summary", {}, h("span", { class: "line" }, `system prompt, ${text.length.toLocaleString("en")} characters`)), h("pre", {}, text)));
  }
  const answers = new Map(c.messages.filter((m) => m.role === "tool").map((m) => [m.call, m]));
  const used = new Set();
  let speaker = "";
  c.messages.forEach((m, i) => {
    if (i === parted && i > 0) box.append(h("div", { class: "part" }, "the two part here"));
    if (m.role === "tool") {
      if (!used.has(m.call)) box.append(callBox({ name: "answer without a call", arguments: "" }, m));
      return;
    }
    const side = m.role === "assistant" ? "agent" : m.role === "user" ? "user" : "system";
    if (side !== speaker && m.text.trim()) box.append(h("div", { class: `who ${side}` }, side === "agent" ? "Agent" : side === "user" ? "User" : "System"));
    if (m.text.trim()) speaker = side;
    if (m.thinking) box.append(h("details", {}, h("summary", {}, h("span", { class: "line" }, "thinking, hidden from the user")), h("pre", {}, m.thinking)));
    if (m.text.trim()) {
      const [said, stop] = m.text.includes("###STOP###") && side === "user" ? [m.text.replace("###STOP###", "").trim(), true] : [m.text.trim(), false];
      box.append(h("div", { class: `say ${side}` }, said, said && stop ? " " : "", stop ? h("span", { class: "stop", title: "The word with which the user ends the conversation" }, "###STOP###") : null));
    }
    for (const call of m.calls || []) {
      used.add(call.id);
      box.append(callBox(call, answers.get(call.id), m.role === "user"));
    }
  });
  box.append(verdict(c));
  return box;
}

/** One tool call and its answer: a line, and all of it when opened. */
function callBox(call, answer, byUser) {
  const short = call.error ? call.arguments : call.arguments.slice(1, -1).replace(/"(\w+)": /g, "$1: ");
  const failed = Boolean(call.error || (answer && answer.error));
  const body = () => [
    call.error ? h("p", { class: "hint" }, `Not a valid call: ${call.error}`) : null,
    h("pre", {}, call.arguments ? pretty(call.arguments) : "(nothing)"),
    h("p", { class: "hint" }, answer ? (answer.fault ? `Answer; the environment misbehaved: ${spaced(answer.fault)}` : failed ? "Answer, an error; nothing was changed" : "Answer") : "No answer: the episode ended here."),
    answer ? h("pre", {}, pretty(answer.text)) : null,
  ];
  const box = h("details", { class: failed ? "error" : null, ontoggle: () => {
    // Bodies are made when first opened: a page has thousands of calls.
    if (box.open && box.children.length === 1) box.append(...body().filter(Boolean));
  } },
  h("summary", {}, failed ? h("span", { class: "flag" }, "\u2717") : null,
    h("span", { class: "line" }, byUser ? "user’s tool " : "", h("b", {}, call.name || "(no name)"), ` ${short}`, answer ? ` → ${answer.text}` : "")));
  return box;
}
/** JSON text laid out over lines, every value as it was written: parsing would turn 3.0 into 3. */
function pretty(text) {
  try {
    const value = JSON.parse(text);
    if (typeof value !== "object" || value === null || text.length > 50000) return text;
  } catch {
    return text;
  }
  let out = "", depth = 0;
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{[]\s*[}\]]|[{}[\],:]|[^\s{}[\],:"]+/g)) {
    const line = () => "\n" + "  ".repeat(depth);
    if (token === "{" || token === "[") { depth++; out += token + line(); }
    else if (token === "}" || token === "]") { depth--; out += line() + token; }
    else if (token === ",") out += token + line();
    else out += token === ":" ? ": " : token;
  }
  return out;
}
function verdict(c) {
  const [sign, word] = OUTCOMES[outcome(c)];
  const cut = c.reason.indexOf(": ");
  const parts = cut > 0 ? c.reason.slice(cut + 2).split("; ") : [];
  const reason = parts.length > 1 && !c.reason.startsWith("not scored")
    ? [h("p", {}, sentence(c.reason.slice(0, cut) + ":")), h("ul", {}, parts.map((p) => h("li", {}, p)))] : c.reason ? h("p", {}, sentence(c.reason)) : null;
  const ending = (ENDINGS[c.termination] || [])[1];
  return h("div", { class: `verdict ${outcome(c)}` }, h("b", {}, `${sign} ${word}`), c.reward === null ? "" : ` · reward ${plain(c.reward)}`, reason, c.detail ? h("p", {}, c.detail) : null,
    h("p", { class: "hint" }, `Ended by ${c.termination}${ending ? ` (${ending})` : ""} · ${plural(c.steps, "agent step")}, ${plural(c.tokens, "token")}, ${plural(c.calls, "call")}${c.errors ? ` (${c.errors} failed)` : ""}${c.attempts > 1 ? ` · played ${c.attempts} times` : ""}`));
}
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?:…]$/.test(text) ? "" : ".");

/** Index of the first message in which two conversations differ; tool call ids do not count. */
function parting(a, b) {
  const form = (m) => JSON.stringify([m.role, m.text, (m.calls || []).map((c) => [c.name, c.arguments])]);
  const n = Math.min(a.messages.length, b.messages.length);
  for (let i = 0; i < n; i++) if (form(a.messages[i]) !== form(b.messages[i])) return i;
  return n;
}

function compare() {
  const box = byId("compare");
  const pairs = DATA.pairs;
  if (!pairs.length) {
    box.append(h("p", { class: "empty" }, DATA.pair_evals[0] === null
      ? "This compares the cold-start model with the RL model on the same task; it needs evaluations of both."
      : "There is no task that one of the two models solves and the other does not, among the stored conversations."));
    return;
  }
  const [before, after] = DATA.pair_evals.map((i) => DATA.evals[i].label);
  const { gained, lost } = DATA.pairs_in_all;
  box.append(h("p", { class: "lead" }, `The same task, played by both models. By the first sample of each task, ${after} solves ${plural(gained, "task")} that ${inText(before)} fails, and fails ${lost} that ${inText(before)} solves.`));
  const columns = h("div", { class: "columns" });
  const select = h("select", { "aria-label": "Task", onchange: () => show(Number(select.value)) });
  for (const [up, title] of [[true, `${after} solves, ${before.toLowerCase()} fails`], [false, `${before} solves, ${after} fails`]]) {
    const byKind = new Map();
    pairs.forEach((p, n) => { if (p.gained === up) { const k = DATA.conversations[p.before].kind; byKind.set(k, [...(byKind.get(k) || []), n]); } });
    const inAll = up ? gained : lost, here = pairs.filter((p) => p.gained === up).length;
    if (here) select.append(h("optgroup", { label: `${title}${here < inAll ? ` (${here} of ${inAll})` : ` (${inAll})`}` }, [...byKind].flatMap(([kind, list]) => list.map((n) => h("option", { value: n }, `${kind} · ${DATA.conversations[pairs[n].before].task}`)))));
  }
  const order = [...select.options].map((o) => Number(o.value));
  const where = h("span", { class: "hint", "aria-live": "polite" });
  const back = h("button", { type: "button", onclick: () => step(-1) }, "\u2190 Previous");
  const next = h("button", { type: "button", onclick: () => step(1) }, "Next \u2192");
  const step = (d) => show(order[order.indexOf(Number(select.value)) + d]);
  function show(n) {
    select.value = String(n);
    const at = order.indexOf(n);
    back.disabled = at === 0;
    next.disabled = at === order.length - 1;
    where.textContent = `${at + 1} of ${order.length}`;
    const [a, b] = [DATA.conversations[pairs[n].before], DATA.conversations[pairs[n].after]];
    const parted = parting(a, b);
    columns.replaceChildren(talk(a, parted), talk(b, parted));
  }
  box.append(h("div", { class: "picker" }, select, back, next, where), columns);
  show(0);
}

function browse() {
  const box = byId("browse");
  const all = DATA.conversations;
  if (!all.length) {
    box.append(h("p", { class: "empty" }, "No conversation is stored in this run yet."));
    return;
  }
  const inAll = DATA.conversations_in_all;
  box.append(h("p", { class: "lead", "data-figure": "shown" }, DATA.tail_only ? `No evaluation yet: these are the last ${plural(all.length, "training rollout")}.`
    : all.length === inAll ? `All ${plural(inAll, "evaluation conversation")}.` : `${all.length.toLocaleString("en")} of ${plural(inAll, "evaluation conversation")}; the others are in the run folder.`));
  const fields = [
    ["Model", (c) => DATA.sources[c.eval]], ["Kind", (c) => c.kind], ["Outcome", (c) => OUTCOMES[outcome(c)][1]], ["Ended by", (c) => c.termination],
  ];
  const selects = fields.map(([name, get]) => {
    const found = new Map();
    for (const c of all) found.set(get(c), (found.get(get(c)) || 0) + 1);
    const values = [...found.keys()];
    if (name !== "Model") values.sort();
    return h("select", { "aria-label": name, onchange: draw }, h("option", { value: "" }, "all"), values.map((v) => h("option", { value: "=" + v }, `${v || "–"} (${found.get(v)})`)));
  });
  const search = h("input", { type: "search", placeholder: "words in a message", "aria-label": "Text", oninput: draw });
  const number = h("span", { class: "hint", "aria-live": "polite" });
  const list = h("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": "Conversations", onkeydown: onKey });
  const pane = h("div", { "aria-live": "off" });
  let found = [], chosen = null;
  const haystack = new Map();
  const words = (c) => {
    if (!haystack.has(c)) haystack.set(c, [c.task, ...c.messages.flatMap((m) => [m.text, ...(m.calls || []).map((x) => `${x.name} ${x.arguments}`)])].join("\n").toLowerCase());
    return haystack.get(c);
  };
  function draw() {
    const text = search.value.trim().toLowerCase();
    found = all.filter((c) => fields.every(([, get], n) => !selects[n].value || selects[n].value === "=" + get(c)) && (!text || words(c).includes(text)));
    number.textContent = plural(found.length, "conversation");
    list.replaceChildren(...found.map((c, n) => {
      const [sign, word] = OUTCOMES[outcome(c)];
      const first = c.messages.find((m) => m.role === "user");
      return h("div", { role: "option", id: `option-${n}`, "data-stage": stageOf(modelOf(c)), "aria-selected": "false", onclick: () => choose(n) },
        h("span", { class: `sign ${outcome(c)}`, title: word, role: "img", "aria-label": word }, sign), h("span", {}, c.kind || c.task), h("span", { class: "side" }, h("span", { class: "dot" }), DATA.evals[c.eval] ? DATA.evals[c.eval].label : `step ${c.step}`),
        h("span", { class: "sub" }, first ? first.text : c.task));
    }));
    if (!found.length) list.append(h("p", { class: "empty" }, "Nothing fits these filters."));
    const keep = found.indexOf(chosen);
    if (found.length) choose(Math.max(0, keep), false);
    else pane.replaceChildren();
  }
  function choose(n, scroll = true) {
    for (const o of list.querySelectorAll("[aria-selected=true]")) o.setAttribute("aria-selected", "false");
    const option = list.children[n];
    option.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", option.id);
    if (scroll) option.scrollIntoView({ block: "nearest" });
    if (found[n] !== chosen || !pane.firstChild) pane.replaceChildren(talk(found[n], -1));
    chosen = found[n];
  }
  function onKey(event) {
    const jump = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 }[event.key];
    if (!jump || !found.length) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(found.length - 1, found.indexOf(chosen) + jump)));
  }
  box.append(h("div", { class: "filters" }, fields.map(([name], n) => h("label", {}, name, selects[n])), h("label", { class: "text" }, "Text", search)), number,
    h("div", { class: "reader", css: { "margin-top": "8px" } }, list, pane));
  // The last stage is what most readers want to see first.
  const best = DATA.groups.length ? DATA.groups[0].evals.filter((i) => STAGES.includes(DATA.evals[i].model)).at(-1) : undefined;
  if (best !== undefined && all.some((c) => c.eval === best)) selects[0].value = "=" + DATA.sources[best];
  draw();
}

// ---------------------------------------------------------------- set-up, theme, navigation

function setup() {
  const box = byId("setup");
  const { config, manifest, summary } = DATA.setup;
  const parts = [["config.yaml", config], ["manifest.json", Object.keys(manifest).length ? JSON.stringify(manifest, null, 2) : ""], ["summary.json", Object.keys(summary).length ? JSON.stringify(summary, null, 2) : ""]];
  const there = parts.filter(([, text]) => text);
  if (DATA.notes.length) box.append(h("ul", { class: "notes" }, DATA.notes.map((n) => h("li", {}, n))));
  for (const [name, text] of there) box.append(h("details", { class: "fold" }, h("summary", {}, h("code", {}, name)), h("pre", {}, text)));
  if (!there.length && !DATA.notes.length) box.append(h("p", { class: "empty" }, "The run folder holds neither config.yaml nor manifest.json."));
}

function theme() {
  const button = byId("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let choice = null;
  try { choice = localStorage.getItem("mua-theme"); } catch { /* a page from a file may have no storage */ }
  if (/[#&]theme=(dark|light)/.test(location.hash)) choice = RegExp.$1;
  const apply = () => {
    if (choice === "dark" || choice === "light") document.documentElement.dataset.theme = choice;
    const isDark = choice ? choice === "dark" : dark.matches;
    button.textContent = isDark ? "\u2600\uFE0E Light" : "\u263E Dark";
    button.setAttribute("aria-label", `Switch to the ${isDark ? "light" : "dark"} theme`);
  };
  button.addEventListener("click", () => {
    choice = (choice ? choice === "dark" : dark.matches) ? "light" : "dark";
    try { localStorage.setItem("mua-theme", choice); } catch { /* then it holds for this visit */ }
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
}

function navigation() {
  const links = new Map([...byId("nav").children].map((a) => [a.getAttribute("href").slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const e of entries) {
      if (!e.isIntersecting) continue;
      for (const [id, a] of links) id === e.target.id ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) seen.observe(byId(id));
}

theme();
let failed = 0;
for (const part of [hero, results, kinds, training, compare, browse, setup]) {
  // Data nobody foresaw must cost its own section only.
  try {
    part();
  } catch (error) {
    failed++;
    console.error(error);
    byId(part.name).append(h("p", { class: "empty" }, `This part could not be drawn: ${error.message}`));
  }
}
for (const box of document.querySelectorAll("div")) if (box.redraw) drawNow(box);
navigation();
document.documentElement.dataset.ready = failed ? "false" : "true";
