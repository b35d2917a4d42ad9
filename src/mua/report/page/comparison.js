/* A comparison of evaluations: results and differences with their intervals, where they come from, how they were
   measured, training curves over one another. Two conversations of one task and the reader are the report's. */

const COLOURS = ["var(--cold)", "var(--rl)", "var(--s0)", "var(--s1)", "var(--s2)", "var(--s3)", "var(--s5)", "var(--s6)", "var(--s4)"];
const colourOf = (letter) => COLOURS[(letter.charCodeAt(0) - 65) % COLOURS.length];
const dashOf = (letter) => DASHES[4 + Math.floor((letter.charCodeAt(0) - 65) / COLOURS.length) - 1] || "";
const swatchOf = (letter) => h("span", { class: "dot", css: { "--stage": colourOf(letter) } });
const sure = (d) => Boolean(d) && d.low !== null && (d.low > 0 || d.high < 0);
const change = (d) => (d ? points(d.mean) : "–");
const spread = (d) => (d && d.low !== null && d.low !== d.high ? range([d.low, d.high], points) : "–");

function overview() {
  const gate = DATA.gate;
  const pill = gate && h("span", { class: "pill", "data-figure": "gate" }, gate.fallen.length ? `gate failed: ${gate.fallen.length} fell` : "gate holds");
  fill(byId("overview"), { class: "hero" }, [
    h("div", { class: "eyebrow" }, h("span", {}, "Comparison of ", h("b", {}, visible(DATA.title))), pill),
    h("h1", {}, visible(DATA.headline.text)), h("p", { class: "how" }, visible(DATA.headline.how)),
    gate && gate.fallen.length ? h("ul", { class: "notes" }, gate.fallen.map((said) => h("li", {}, visible(said)))) : null,
  ]);
}

// ---------------------------------------------------------------- results

function differences() {
  const box = byId("differences");
  box.append(h("p", { class: "lead" }, "Share of tasks solved, and its difference to the first one, A, task by task. Intervals are 95%."));
  DATA.comparisons.forEach((c, n) => box.append(
    h("h3", { class: "group-title" }, visible(c.title)),
    h("div", { class: "two" }, successPlot(c), differencePlot(c)),
    h("div", { class: "panel", css: { "margin-top": "16px" } }, successTable(c, n))));
}

/** A row for each evaluation: a mark with its interval on a common scale. */
function intervalPlot(title, hint, rows, low, high, show, zero) {
  const plot = h("div", {});
  responsive(plot, (width) => {
    const left = 24, right = 64, row = 30, height = rows.length * row + 26;
    const x = (v) => left + ((v - low) / (high - low)) * (width - left - right);
    plot.replaceChildren(s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": rows.map((r) => `${r.letter} ${show(r.value)}`).join("; ") },
      ticks(low, high, 4).filter((t) => t >= low - 1e-9 && t <= high + 1e-9).map((t) => [
        s("line", { class: Math.abs(t - zero) < 1e-9 ? "axis" : "grid", x1: x(t), x2: x(t), y1: 2, y2: height - 22 }),
        s("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, show(t)),
      ]),
      rows.map((r, n) => {
        const y = n * row + row / 2, colour = colourOf(r.letter);
        return s("g", {}, s("text", { class: "strong", x: 0, y: y + 4.5 }, r.letter),
          isNumber(r.value) && r.ci && s("path", { d: `M${x(r.ci[0])} ${y}H${x(r.ci[1])}M${x(r.ci[0])} ${y - 5}v10M${x(r.ci[1])} ${y - 5}v10`, stroke: colour, "stroke-width": 2, fill: "none" }),
          isNumber(r.value) && s("circle", { cx: x(r.value), cy: y, r: 5, fill: colour }),
          s("text", { class: "strong", x: width, y: y + 4.5, "text-anchor": "end" }, r.text || show(r.value)));
      })));
  });
  return h("div", { class: "panel" }, h("header", {}, h("b", {}, title), h("span", { class: "hint" }, hint)), plot);
}
function successPlot(c) {
  const rows = c.evaluations.map((e) => ({ letter: e.letter, value: e.success, ci: e.ci95, text: percent(e.success) }));
  return intervalPlot("Success", "", rows, 0, 1, (v) => percent(v).replace(".0%", "%"), 0);
}
function differencePlot(c) {
  const rows = c.evaluations.map((e, n) => (n ? { letter: e.letter, value: e.difference && e.difference.mean, ci: e.difference && e.difference.low !== null ? [e.difference.low, e.difference.high] : null } : { letter: e.letter, value: null, text: "baseline" }));
  const ends = rows.flatMap((r) => [r.value, ...(r.ci || [])]).filter(isNumber);
  const reach = Math.max(0.02, ...ends.map(Math.abs)) * 1.1;
  return intervalPlot("Difference to A", "points; right of the line is better", rows, -reach, reach, points, 0);
}

function successTable(c, n) {
  const ks = [...new Set(c.evaluations.flatMap((e) => Object.keys(e.pass_k).map(Number)))].filter((k) => k > 1).sort((a, b) => a - b);
  const shownKs = ks.length > 5 ? ks.filter((k) => Number.isInteger(Math.log2(k)) || k === ks.at(-1)) : ks;
  const paid = c.evaluations.some((e) => e.cost);
  const heads = ["success", "95% interval", ...shownKs.map((k) => `pass^${k}`), "difference", "95% interval", "p", "only this solves", "only A solves", "tasks", "user turns", "agent tokens", ...(paid ? ["cost"] : [])];
  const count_ = (e, key) => (e.difference && isNumber(e.difference[key]) ? String(e.difference[key]) : "–");
  return [h("header", {}, h("b", {}, "In figures"), h("span", { class: "hint" }, "p: exact sign test over tasks")), h("div", { class: "scroll" }, h("table", { "data-table": `success-${n}` },
    h("thead", {}, h("tr", {}, h("th", {}, "evaluation"), heads.map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", {}, c.evaluations.map((e, i) => h("tr", {}, h("th", { scope: "row", title: e.file }, swatchOf(e.letter), visible(`${e.letter} ${e.label}`)),
      [percent(e.success), e.ci95 ? range(e.ci95, percent) : "–", ...shownKs.map((k) => (e.pass_k[k] ? percent(e.pass_k[k].value) : "–")), i ? change(e.difference) : "baseline", spread(e.difference),
        e.difference && isNumber(e.difference.p) ? (e.difference.p < 0.001 ? "<0.001" : e.difference.p.toFixed(3)) : "–", count_(e, "only_this"), count_(e, "only_baseline"),
        `${plain(e.n)} × ${plain(e.samples)}${e.difference && e.difference.left_out ? `, ${e.difference.tasks} compared` : ""}`, isNumber(e.turns) ? e.turns.toFixed(2) : "–", isNumber(e.tokens) ? e.tokens.toFixed(1) : "–", ...(paid ? [`$${e.cost.toFixed(2)}`] : []),
      ].map((text) => h("td", {}, text)))))))];
}

// ---------------------------------------------------------------- where from

function parts() {
  const box = byId("parts");
  const place = h("div", {});
  const show = (c) => {
    place.replaceChildren(...[["domains", "By domain", "success"], ["kinds", "By kind of task", "success"], ["layers", "Layers of the audit kept", "rate"]].map(([key, title, value]) => shares(c, key, title, value)).filter(Boolean), endings(c));
  };
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": "Comparison" }, DATA.comparisons.map((c, n) => h("button", { type: "button", "aria-pressed": String(n === 0), onclick: (event) => {
    for (const b of tabs.children) b.setAttribute("aria-pressed", String(b === event.currentTarget));
    show(c);
  } }, visible(c.title))));
  box.append(h("div", { class: "head" }, h("p", { class: "lead" }, "Each difference is to A, over the same tasks; a star marks an interval without 0. Of many kinds one may have a star by chance."), DATA.comparisons.length > 1 ? tabs : null), place);
  show(DATA.comparisons[0]);
}
function shares(c, key, title, value) {
  const names = [...new Set(c.evaluations.flatMap((e) => Object.keys(e[key])))];
  if (!names.length) return null;
  const most = (name) => Math.max(...c.evaluations.map((e) => Math.abs(e[key][name] && e[key][name].difference ? e[key][name].difference.mean : 0)));
  if (key !== "layers") names.sort((a, b) => most(b) - most(a) || a.localeCompare(b));
  // Many evaluations have their difference below their rate, so that all of them stand side by side.
  const narrow = c.evaluations.length > 4;
  const cells = (e, n, name) => {
    const found = e[key][name], d = found && found.difference, rate = percent(found ? found[value] : null);
    const tone = { class: sure(d) ? (d.mean < 0 ? "minus" : "plus") : null, title: d && d.low !== null ? `95% interval ${spread(d)}, ${plural(d.tasks, "task")}` : null };
    const told = change(d) + (sure(d) ? " *" : "");
    if (narrow) return h("td", {}, rate, n ? h("div", tone, told) : null);
    return [h("td", {}, rate), n ? h("td", tone, told) : null];
  };
  return h("div", { class: "panel", css: { "margin-top": "16px" } }, h("header", {}, h("b", {}, title)), h("div", { class: "scroll" }, h("table", { "data-table": key },
    h("thead", {}, h("tr", {}, h("th", {}, ""), h("th", { scope: "col" }, key === "layers" ? "episodes" : "tasks"), c.evaluations.map((e, n) => [h("th", { scope: "col", title: e.label }, swatchOf(e.letter), e.letter), n && !narrow ? h("th", { scope: "col" }, `${e.letter} − A`) : null]))),
    h("tbody", {}, names.map((name) => h("tr", {}, h("th", { scope: "row" }, visible(key === "layers" ? LAYER_NAMES[name] || name : name)),
      h("td", {}, [...new Set(c.evaluations.map((e) => e[key][name] && e[key][name].n).filter(isNumber))].map(plain).join("/")),
      c.evaluations.map((e, n) => cells(e, n, name))))))));
}
function endings(c) {
  const names = endingOrder(c.evaluations.flatMap((e) => Object.keys(e.terminations)));
  const total = (e) => Object.values(e.terminations).reduce((a, b) => a + b, 0);
  return h("div", { class: "panel", css: { "margin-top": "16px" } }, h("header", {}, h("b", {}, "How conversations ended")), h("div", { class: "scroll" }, h("table", { "data-table": "endings" },
    h("thead", {}, h("tr", {}, h("th", {}, ""), c.evaluations.map((e) => h("th", { scope: "col", title: e.label }, swatchOf(e.letter), e.letter)))),
    h("tbody", {}, names.map((name) => h("tr", {}, h("th", { scope: "row", title: (ENDINGS[name] || [])[1] }, visible(spaced(name))), c.evaluations.map((e) => h("td", {}, total(e) ? percent((e.terminations[name] || 0) / total(e)) : "–"))))))));
}

// ---------------------------------------------------------------- how measured

function protocol() {
  const box = byId("protocol");
  for (const c of DATA.comparisons) {
    const list = (items) => h("ul", { class: "notes" }, items.map((text) => h("li", {}, visible(text))));
    box.append(h("h3", { class: "group-title" }, visible(c.title)), c.protocol.length
      ? h("div", { "data-list": "protocol" }, h("p", {}, "Measured differently:"), list(c.protocol.map((p) => p.words)))
      : h("p", { "data-list": "protocol" }, "Measured alike, as far as settings are recorded."));
    if (c.unrecorded.length) box.append(h("p", { class: "hint" }, `Recorded by none: ${c.unrecorded.join(", ")}.`));
    for (const [measure, published] of Object.entries(c.published.rows || {})) {
      const ours = c.evaluations.map((e) => [`${e.letter} ${e.label}`, e.measures[measure], e.letter]);
      box.append(h("div", { class: "panel", css: { "margin-top": "16px" } }, h("header", {}, h("b", {}, `Beside published results: ${spaced(measure)}`)), h("table", { "data-table": "published" }, h("tbody", {},
        ours.map(([name, value, letter]) => h("tr", {}, h("th", { scope: "row" }, swatchOf(letter), visible(name)), h("td", {}, percent(value)))),
        Object.entries(published).map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, `${value.toFixed(1)}%`)))))));
    }
    const told = Object.entries(c.published.protocol || {}).filter(([, words]) => words.length);
    if (told.length) box.append(list(told.map(([letter, words]) => `${letter} beside the paper's rows: ${words.join("; ")}`)));
    if (c.notes.length) box.append(list(c.notes));
  }
  if (DATA.notes.length) box.append(h("ul", { class: "notes" }, DATA.notes.map((text) => h("li", {}, visible(text)))));
}

// ---------------------------------------------------------------- training

const CURVES = [
  ["reward", "Reward", "Mean over the episodes of a step."], ["all_correct", "All-correct queries", "Share of groups whose episodes all succeed.", true], ["all_wrong", "All-wrong queries", "Share of groups whose episodes all fail.", true],
  ["turns", "User turns", "Mean an episode."], ["tokens_per_step", "Agent tokens a step", "Mean length of one generation."], ["kl", "KL", "To the reference."],
  ["entropy", "Entropy", "Over trained tokens, nats."], ["grad_norm", "Gradient norm", "Before clipping."], ["groups_trained", "Groups trained on", "Those with both outcomes."],
];
function curves() {
  const box = byId("curves");
  if (!DATA.curves.length) return void box.append(h("p", { class: "empty" }, "None of the evaluations lies in a run folder with training metrics."));
  box.append(h("p", { class: "lead" }, "The runs over one another, by step of GRPO. Point at a chart, or focus it and use the arrow keys: all show the same step."));
  const xs = [...new Set(DATA.curves.flatMap((run) => run.metrics.map((m) => m.step)))].sort((a, b) => a - b);
  const linked = [];
  const charts = CURVES.map(([key, title, hint, share]) => {
    const runs = DATA.curves.filter((run) => run.metrics.some((m) => isNumber(m[key])));
    if (!runs.length) return null;
    return lineChart({ title, hint, key, xs, xName: "step", smooth: true, ...(share ? { show: percent, axis: (v) => `${Number((100 * v).toPrecision(3))}%`, zero: true, most: 1 } : {}),
      lines: runs.map((run) => ({ label: visible(run.label), colour: colourOf(run.letter), dash: dashOf(run.letter), values: along(xs, run.metrics, key) })) }, linked);
  });
  box.append(h("div", { class: "charts", css: { "margin-top": "16px" } }, charts.filter(Boolean)));
}
/** The values of a run at the steps of all: where it logged no line of its own, between its neighbours. */
function along(xs, metrics, key) {
  let at = 0;
  return xs.map((x) => {
    while (at < metrics.length && metrics[at].step < x) at++;
    const next = metrics[at], last = metrics[at - 1];
    if (!next) return null;
    if (next.step === x) return isNumber(next[key]) ? next[key] : null;
    if (!last || !isNumber(last[key]) || !isNumber(next[key])) return null;
    return last[key] + ((next[key] - last[key]) * (x - last.step)) / (next.step - last.step);
  });
}

(async () => {
  try {
    readIndex(await inflate("index"));
  } catch (error) {
    console.error(error);
    DATA.notes.push(`The list of conversations cannot be read: ${error.message}`);
  }
  start([overview, differences, parts, protocol, curves, compare, browse]);
  const none = byId("compare").querySelector(":scope > .empty");
  if (DATA.pair_evals[0] === null && none) none.textContent = "The conversations of the first two evaluations are not stored.";
  keys({
    "/": ["search all conversations", () => { byId("browse").scrollIntoView(); browser.search.focus(); }],
    j: ["next conversation", () => browser.step(1)], k: ["previous conversation", () => browser.step(-1)],
    c: ["compare the open conversation with another of its task", () => browser.compare()],
    n: ["next pair side by side", () => comparer.step(1)], p: ["previous pair", () => comparer.step(-1)],
  });
  links.open();
  addEventListener("hashchange", () => links.open());
  addEventListener("popstate", () => links.open());
})();
