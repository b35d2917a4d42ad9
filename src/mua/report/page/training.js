/* The section of the training: charts over the steps. */

function training() {
  const box = byId("training");
  const lines = DATA.metrics;
  const sft = Object.entries(DATA.sft).filter(([, rows]) => rows.length);
  if (!lines.length && !sft.length) {
    box.append(h("p", { class: "empty" }, "No training has been logged: neither metrics.jsonl nor sft_agent.jsonl holds a line."));
    return;
  }
  smoothing.charts.length = 0; // of an earlier drawing
  const slider = h("input", { type: "range", min: 0, max: 12, value: smoothing.level, id: "smooth", oninput: () => {
    smoothing.level = Number(slider.value);
    smoothing.charts.forEach((c) => c.redraw());
  } });
  box.append(h("div", { class: "head" },
    h("p", { class: "lead" }, "Point at a chart, or focus it and use the arrow keys: all charts of a phase show the same step."),
    h("label", { class: "hint smooth" }, "Smoothing ", slider)));
  if (DATA.problems.length) box.append(problemsPanel());
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
    endingChart(lines, common, linked));
  section("Tools", toolChart(lines, common, linked), toolErrors(common, linked));
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

/** Share of the calls that failed, by step; from the rollouts themselves. */
function toolErrors(common, linked) {
  const by = new Map(DATA.tool_errors.map((x) => [x.step, x]));
  if (!common.xs.some((step) => by.has(step))) return null;
  const values = common.xs.map((step) => (by.has(step) ? by.get(step).share : null));
  return lineChart({ ...common, key: "tool_errors", title: "Failed calls", hint: "Share of the agent's calls that the environment answered with an error.", smooth: true, wide: true, zero: true, most: 1, show: percent, axis: (v) => `${Number((100 * v).toPrecision(3))}%`, lines: [{ label: "failed", values, colour: "var(--bad)" }] }, linked);
}

/** Steps that made no update, with the reason. */
function problemsPanel() {
  const byReason = new Map();
  for (const { step, problems } of DATA.problems) for (const [key, words] of problems) byReason.set(key, { words, steps: [...(byReason.get(key) || { steps: [] }).steps, step] });
  const kept = (step) => DATA.sources.find((x) => x.key === `anomaly-${String(step).padStart(6, "0")}`);
  const link = (step) => {
    const source = kept(step);
    return source ? h("button", { type: "button", class: "plain", title: "Its episodes, with their tokens", onclick: () => browser.go({ Model: source.label }) }, String(step)) : String(step);
  };
  const steps = (list) => list.slice(0, 40).flatMap((step, n) => [n ? ", " : "", link(step)]).concat(list.length > 40 ? [` and ${list.length - 40} more`] : []);
  return h("div", { class: "panel problems", "data-figure": "problems" }, h("header", {}, h("b", {}, `⚠︎ ${plural(DATA.problems.length, "step")} without an update`), h("span", { class: "hint" }, "Left out of training, recorded all the same.")),
    h("ul", {}, [...byReason].map(([key, { words, steps: list }]) => h("li", {}, h("b", {}, spaced(key)), words ? `: ${words}. ` : ": ", h("span", { class: "hint" }, list.length === 1 ? "Step " : "Steps ", steps(list))))));
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
