/* The sections of the evaluations: header, results, kinds of task. */

function hero() {
  const { done, planned } = DATA.steps;
  const state = DATA.finished ? h("span", { class: "pill" }, "finished")
    : h("span", { class: "pill running" }, done ? `step ${done}${planned ? ` of ${planned}` : ""}, not finished` : "not finished");
  fill(byId("hero"), {}, [
    h("div", { class: "eyebrow" }, h("span", {}, "Run ", h("b", {}, DATA.title)), state, DATA.live ? h("span", { class: "pill live" }, "live") : null),
    h("h1", {}, DATA.headline.text),
    h("p", { class: "how" }, DATA.headline.how),
    DATA.facts.length ? h("dl", { class: "facts" }, DATA.facts.map(([label, value, unit]) =>
      h("div", {}, h("dt", {}, label), h("dd", { "data-fact": label }, (UNITS[unit] || String)(value))))) : null,
  ]);
}

// ---------------------------------------------------------------- results

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
  if (multi.length) box.append(h("div", { class: "two" }, multi.map(passPanel)));
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

/** What the reader has chosen here; it outlives a redraw. */
const kindView = { title: null, sorted: "gain", way: -1 };

function kinds() {
  const box = byId("kinds");
  const usable = DATA.groups.filter((g) => g.kinds.length);
  if (!usable.length) {
    box.append(h("p", { class: "empty" }, "No results by kind of task yet."));
    return;
  }
  const place = h("div", { class: "stack" });
  const draw = (group) => place.replaceChildren(...[sharesPanel(group), h("div", { class: "panel" }, kindTable(group))].filter(Boolean));
  const chosen = Math.max(0, usable.findIndex((g) => g.title === kindView.title));
  const tabs = groupTabs(usable, chosen, (group) => {
    kindView.title = group.title;
    draw(group);
  });
  box.append(h("div", { class: "head" }, h("p", { class: "lead" }, "Share of tasks solved, and what each kind adds to the whole." + (usable[0].gain ? ` The line runs from ${inText(label(usable[0].before))} to ${label(usable[0].after)}.` : "")), usable.length > 1 ? tabs : null), place);
  draw(usable[chosen]);
  for (const inner of place.querySelectorAll("div")) if (inner.redraw) drawNow(inner);
}

/** Buttons of which one is pressed: one a group of evaluations. */
function groupTabs(groups, chosen, pick) {
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": "Sampling" }, groups.map((g, n) =>
    h("button", { type: "button", "aria-pressed": String(n === chosen), onclick: (event) => {
      for (const b of tabs.children) b.setAttribute("aria-pressed", String(b === event.currentTarget));
      pick(g);
    } }, g.title)));
  return tabs;
}

/** Where the gain comes from: each kind's part of it, by its share of the tasks. They add up to the whole. */
function sharesPanel(group) {
  const rows = group.kinds.slice(group.domains).filter((r) => isNumber(r.share)).sort((a, b) => b.share - a.share);
  if (rows.length < 2 || !group.gain) return null;
  const most = Math.max(...rows.map((r) => Math.abs(r.share)), 1e-9), lowest = Math.min(0, ...rows.map((r) => r.share));
  const plot = h("div", {});
  responsive(plot, (width) => {
    const left = Math.min(width * 0.34, 12 + 7 * Math.max(...rows.map((r) => r.kind.length))), right = 54, row = 24, room = width - left - right;
    const zero = left + (room * -lowest) / (most - lowest), scale = room / (most - lowest);
    plot.replaceChildren(s("svg", { viewBox: `0 0 ${width} ${rows.length * row + 4}`, role: "img", "aria-label": rows.map((r) => `${r.kind} ${points(r.share)} points`).join(", ") },
      s("line", { class: "axis", x1: zero, x2: zero, y1: 0, y2: rows.length * row }),
      rows.map((r, n) => s("g", { onpointermove: (event) => showTip([{ label: "tasks", value: plain(r.n) }, { label: "gain within the kind", value: `${points(r.gain)} points` }, { label: "part of the whole gain", value: `${points(r.share)} points` }], r.kind, event.clientX, event.clientY), onpointerleave: hideTip },
        s("rect", { x: 0, y: n * row, width, height: row, fill: "transparent" }),
        s("text", { class: "label", x: left - 10, y: n * row + 16, "text-anchor": "end" }, r.kind.length * 7 > left ? clip(r.kind, Math.floor(left / 7) - 1) : r.kind),
        s("rect", { x: Math.min(zero, zero + r.share * scale), y: n * row + 4, width: Math.max(0.5, Math.abs(r.share) * scale), height: row - 9, rx: 2, fill: r.share < 0 ? "var(--bad)" : "var(--rl)" }),
        s("text", { class: "strong", x: width, y: n * row + 16, "text-anchor": "end" }, points(r.share))))));
  });
  const sum = rows.reduce((x, r) => x + r.share, 0);
  return h("div", { class: "panel", "data-figure": "shares" }, h("header", {}, h("b", {}, "Where the score comes from"), h("span", { class: "hint" }, `Points of the gain by kind: the gain within it times its share of the tasks. Together ${points(sum)}.`)), plot);
}

function kindTable(group) {
  const stages = group.evals.filter((i, n, all) => STAGES.includes(DATA.evals[i].model) && all.findIndex((j) => DATA.evals[j].model === DATA.evals[i].model) === n);
  const shown = stages.length ? stages : group.evals;
  const body = h("tbody", {});
  const keys = { kind: (r) => r.kind, n: (r) => r.n, gain: (r) => r.gain };
  for (const i of shown) keys["v" + i] = (r) => r.values[i];
  let { sorted, way } = kindView;
  if (!keys[sorted]) [sorted, way] = ["gain", -1];
  const heads = new Map();
  const head = (key, text) => {
    const cell = h("th", { scope: "col" }, h("button", { type: "button", onclick: () => { way = sorted === key ? -way : key === "kind" ? 1 : -1; sorted = key; Object.assign(kindView, { sorted, way }); draw(); } }, text));
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
    body.replaceChildren(...rows.map((r) => h("tr", { "data-kind": r.kind }, h("th", { scope: "row" }, kindLink(r.kind)), h("td", { class: "n" }, plain(r.n)), h("td", { class: "range" }, span(r)),
      shown.map((i) => h("td", {}, percent(r.values[i]))), h("td", { class: isNumber(r.gain) && r.gain < 0 ? "minus" : "plus" }, points(r.gain)))));
  }
  /** Its conversations, where they are in the page. */
  function kindLink(kind) {
    if (!ROWS.some((r) => r.kind === kind)) return kind || "–";
    return h("button", { type: "button", class: "plain", title: "Show its conversations", onclick: () => browser.go({ Kind: kind }) }, visible(kind || "–"));
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
