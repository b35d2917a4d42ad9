/* The section on how the agent behaves: the five layers of the audit, the rules most broken, how conversations
   ended. */

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

const LAYER_WORDS = {
  outcome: "the end state is right",
  policy: "the domain's rules were followed",
  communication: "what had to be said was said",
  safety: "nobody's data or wishes were passed over",
  recovery: "after a new wish, an error or a correction, it got back on its way",
};
const behaviourView = { title: null };

function behaviour() {
  const box = byId("behaviour");
  const audited = DATA.groups.filter((g) => g.evals.some((i) => DATA.evals[i].audit));
  const endings = endingsPanel();
  if (!audited.length && !endings) {
    box.append(h("p", { class: "empty" }, "No evaluation has been audited yet."));
    return;
  }
  const place = h("div", { class: "stack" });
  const draw = (group) => {
    place.replaceChildren(...[layersPanel(group), rulesPanel(group)].filter(Boolean));
    for (const inner of place.querySelectorAll("div")) if (inner.redraw) drawNow(inner);
  };
  const chosen = Math.max(0, audited.findIndex((g) => g.title === behaviourView.title));
  const tabs = groupTabs(audited, chosen, (group) => {
    behaviourView.title = group.title;
    draw(group);
  });
  box.append(h("div", { class: "head" }, h("p", { class: "lead" }, audited.length ? "What the end state does not show: each layer's share of the conversations it applies to that broke none of its rules. Intervals are 95%." : "How the evaluations' conversations ended; none of them was audited."), audited.length > 1 ? tabs : null));
  if (audited.length) {
    box.append(place);
    draw(audited[chosen]);
  }
  if (endings) box.append(h("div", { class: "stack" }, endings));
}

const auditedOf = (group) => {
  const list = group.evals.filter((i) => DATA.evals[i].audit);
  const first = list.filter((i, n) => list.findIndex((j) => DATA.evals[j].model === DATA.evals[i].model) === n);
  return first.map((i) => DATA.evals[i]);
};

/** Layers by model: a dot with its interval on a line from 0 to 100 %. */
function layersPanel(group) {
  const evals = auditedOf(group);
  const layers = Object.keys(LAYER_NAMES).filter((l) => evals.some((e) => e.audit.layers[l]));
  if (!layers.length) return null;
  const plot = h("div", {});
  responsive(plot, (width) => {
    const narrow = width < 560, left = narrow ? 0 : Math.min(250, width * 0.3), right = 52, each = 17, pad = narrow ? 32 : 16, head = narrow ? 22 : 0;
    const block = Math.max(each * evals.length, narrow ? 0 : 34) + pad;
    const x = (v) => left + 8 + v * (width - left - right - 16), height = layers.length * block + 18;
    plot.replaceChildren(s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": layers.map((l) => `${LAYER_NAMES[l]}: ${evals.filter((e) => e.audit.layers[l]).map((e) => `${e.label} ${percent(e.audit.layers[l].rate)}`).join(", ")}`).join("; ") },
      [0, 0.25, 0.5, 0.75, 1].map((t) => [s("line", { class: t ? "grid" : "axis", x1: x(t), x2: x(t), y1: 0, y2: height - 16 }), s("text", { x: x(t), y: height - 2, "text-anchor": "middle" }, `${100 * t}${t === 1 ? "%" : ""}`)]),
      layers.map((layer, n) => {
        const top = n * block + 4, middle = top + (block - pad) / 2;
        return s("g", {}, n ? s("line", { class: "grid", x1: 0, x2: width, y1: top - 4, y2: top - 4 }) : null,
          s("text", { class: "strong", x: 0, y: narrow ? top + 13 : middle + 6 }, LAYER_NAMES[layer]), narrow ? null : wrapped(LAYER_WORDS[layer], 0, middle + 22, left - 16),
          evals.map((e, k) => {
            const found = e.audit.layers[layer], y = top + head + 8 + k * each + (narrow ? 0 : Math.max(0, (34 - each * evals.length) / 2));
            if (!found) return s("text", { x: x(0) + 6, y: y + 4 }, "did not apply");
            if (found.rate === null) return s("text", { x: x(0) + 6, y: y + 4 }, "only a reader can tell");
            const colour = stageColour(e.model);
            return s("g", { onpointermove: (event) => showTip([{ label: e.label, value: percent(found.rate), colour }, { label: "95% interval", value: range([found.low, found.high], percent) }, { label: "conversations", value: plain(found.n) }], LAYER_NAMES[layer], event.clientX, event.clientY), onpointerleave: hideTip },
              s("rect", { x: left, y: y - 8, width: width - left, height: each, fill: "transparent" }),
              isNumber(found.low) && s("line", { x1: x(found.low), x2: x(found.high), y1: y, y2: y, stroke: colour, "stroke-width": 2.5, "stroke-opacity": 0.5, "stroke-linecap": "round" }),
              s("circle", { cx: x(found.rate), cy: y, r: 4.6, fill: colour, stroke: "var(--surface)", "stroke-width": 1.5 }),
              s("text", { class: "label", x: width, y: y + 4.5, "text-anchor": "end", "data-figure": `${e.name} ${layer}` }, percent(found.rate)));
          }));
      })));
  });
  return h("div", { class: "panel" }, h("header", {}, h("b", {}, "Five layers"), h("div", { class: "legend" }, evals.map((e) => h("span", { class: "key", "data-stage": stageOf(e.model) }, h("span", { class: "dot" }), e.label)))), plot);
}
/** Text over lines of a width, in a drawing. */
function wrapped(text, x, y, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1) && (lines.at(-1).length + word.length) * 5.6 > width) lines.push("");
    lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines.slice(0, 2).map((line, n) => s("text", { x, y: y + 13 * n }, line));
}

/** The rules most broken: in how many conversations, by model; a click shows them. */
function rulesPanel(group) {
  const evals = auditedOf(group);
  const rules = new Map();
  for (const e of evals) for (const r of e.audit.rules) if (r.layer !== "outcome") {
    const key = `${r.layer}/${r.rule}`;
    rules.set(key, { ...(rules.get(key) || { key, layer: r.layer, rule: r.rule }), [e.name]: r });
  }
  const share = (r, e) => (r[e.name] && isNumber(r[e.name].rate) ? 1 - r[e.name].rate : null);
  const worst = (r) => Math.max(...evals.map((e) => share(r, e) ?? 0));
  const all = [...rules.values()].sort((a, b) => worst(b) - worst(a) || a.key.localeCompare(b.key));
  const broken = all.filter((r) => worst(r) > 0), kept = all.filter((r) => worst(r) === 0);
  const cell = (r, e) => {
    const v = share(r, e), found = r[e.name];
    if (v === null) return h("td", { class: "hint" }, found ? "?" : "–");
    const n = Math.round(v * found.n);
    const text = [h("span", { class: "cellbar", css: { "--share": `${100 * v}%`, "--stage": stageColour(e.model) } }), h("span", { class: "amount" }, percent(v))];
    const source = DATA.sources.find((x) => DATA.evals[x.eval] === e);
    return h("td", { title: `${n} of ${plural(found.n, "conversation")}, ${plural(found.breaches, "breach").replace(/breachs$/, "breaches")}` },
      n && source ? h("button", { type: "button", class: "plain", onclick: () => browser.go({ Model: source.label, "Rule broken": r.key }) }, text) : text);
  };
  if (!all.length) return null;
  const table = (list) => h("div", { class: "scroll" }, h("table", { "data-table": "rules" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "rule"), evals.map((e) => h("th", { scope: "col" }, e.label)))),
    h("tbody", {}, list.map((r) => h("tr", { "data-rule": r.key }, h("th", { scope: "row" }, ruleName(r.rule), " ", h("span", { class: "hint" }, LAYER_NAMES[r.layer] || r.layer)), evals.map((e) => cell(r, e)))))));
  return h("div", { class: "panel" }, h("header", {}, h("b", {}, "Rules most broken"), h("span", { class: "hint" }, "Share of the conversations in which the rule applied. A click shows them.")),
    broken.length ? table(broken.slice(0, 12)) : h("p", { class: "hint" }, "No rule was broken."),
    broken.length > 12 ? h("details", { class: "inner" }, h("summary", {}, `${broken.length - 12} more`), table(broken.slice(12))) : null,
    kept.length ? h("p", { class: "hint", css: { "margin-top": "10px" } }, `Never broken: ${kept.map((r) => spaced(r.rule)).join(", ")}.`) : null);
}

/** How the evaluation's conversations ended: one stacked bar for each evaluation. */
function endingsPanel() {
  const rows = DATA.evals.map((e, i) => ({ e, name: e.title, total: Object.values(e.terminations).reduce((a, b) => a + b, 0) })).filter((r) => r.total > 0);
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
