/* One conversation, as an article: what was said and called, what each write changed, which rules were broken
   where, how it ended. */

const LAYER_NAMES = { outcome: "Outcome", policy: "Policy", communication: "Communication", safety: "Safety", recovery: "Recovery" };
const LONG = 5000;

/** Text that may be very long: its beginning, and a button for the rest. */
function longText(text) {
  if (text.length <= LONG) return [visible(text)];
  const place = h("span", {}, visible(text.slice(0, LONG)) + "…");
  const more = h("button", { type: "button", class: "more", onclick: () => {
    place.textContent = visible(text);
    more.remove();
  } }, `Show all ${text.length.toLocaleString("en")} characters`);
  return [place, " ", more];
}
const ruleName = (rule) => { const text = spaced(rule); return text.charAt(0).toUpperCase() + text.slice(1); };

/** `parted` is the first message in which it differs from the one beside it, or -1. */
function talk(row, c, parted = -1) {
  const box = h("article", { class: "talk", "data-stage": stageOf(modelOf(row)), "data-conversation": row.key });
  box.append(h("header", {}, h("b", {}, h("span", { class: "dot" }), sourceOf(row).label),
    h("span", { class: "hint" }, [row.kind, row.task, whereOf(row)].filter(Boolean).map(visible).join(" · "))));
  if (row.persona || c.unfaithful.length) box.append(h("p", { class: "hint" }, row.persona ? `The user is ${visible(spaced(row.persona))}. ` : "", c.unfaithful.length ? `It strayed from its scenario: ${visible(c.unfaithful.join("; "))}.` : ""));
  if (c.system) box.append(h("details", {}, h("summary", {}, h("span", { class: "line" }, `system prompt, ${c.system.length.toLocaleString("en")} characters`)), h("pre", {}, longText(c.system))));
  const answers = new Map(c.messages.filter((m) => m.role === "tool").map((m) => [m.call, m]));
  const used = new Set();
  const rulings = new Map();
  for (const v of c.audit ? c.audit.verdicts : []) {
    if (!isNumber(v.at) || v.layer === "outcome") continue;
    // A rule may stand in two layers: one line says both.
    const there = rulings.get(v.at) || [], twin = there.find((x) => x.rule === v.rule && x.status === v.status && x.evidence === v.evidence);
    if (twin) twin.layers.push(v.layer);
    else rulings.set(v.at, [...there, { ...v, layers: [v.layer] }]);
  }
  let speaker = "";
  c.messages.forEach((m, i) => {
    if (i === parted && i > 0) box.append(h("div", { class: "part" }, "the two part here"));
    if (m.role === "tool") {
      if (!used.has(m.call)) box.append(callBox({ name: "answer without a call", arguments: "" }, m));
    } else {
      const side = m.role === "assistant" ? "agent" : m.role === "user" ? "user" : "system";
      if (side !== speaker && m.text.trim()) box.append(h("div", { class: `who ${side}` }, side === "agent" ? "Agent" : side === "user" ? "User" : "System"));
      if (m.text.trim()) speaker = side;
      if (m.thinking) box.append(h("details", {}, h("summary", {}, h("span", { class: "line" }, "thinking, hidden from the user")), h("pre", {}, longText(m.thinking))));
      if (m.text.trim()) {
        const [said, stop] = m.text.includes("###STOP###") && side === "user" ? [m.text.replace("###STOP###", "").trim(), true] : [m.text.trim(), false];
        box.append(h("div", { class: `say ${side}`, dir: "auto" }, longText(said), said && stop ? " " : "", stop ? h("span", { class: "stop", title: "The word with which the user ends the conversation" }, "###STOP###") : null));
      }
      for (const call of m.calls || []) {
        used.add(call.id);
        box.append(callBox(call, answers.get(call.id), m.role === "user"));
        if (call.changes) box.append(changesBox(call.changes));
      }
    }
    for (const v of rulings.get(i) || []) box.append(ruling(v));
  });
  box.append(auditBox(row, c), verdict(row, c));
  return box;
}

/** A rule at the message that broke it (or showed it kept). */
function ruling(v) {
  const tone = { violation: "bad", pass: "good" }[v.status] || "unscored";
  return h("div", { class: `ruling ${tone}`, "data-rule": v.rule },
    h("b", {}, `${{ bad: "\u2717", good: "\u2713", unscored: "?" }[tone]} ${(v.layers || [v.layer]).map((l) => LAYER_NAMES[l] || l).join(", ")}`), h("span", {}, `${ruleName(v.rule)}${v.status === "unmeasured" ? " (only a reader can tell)" : ""}`),
    v.evidence ? h("span", { class: "evidence" }, visible(v.evidence)) : null);
}

/** What a call changed: record, field, before and after. */
function changesBox(changes) {
  const value = (text, kind) => (text === null ? h("span", { class: "hint" }, "nothing") : h("code", { class: kind }, visible(text)));
  const records = new Map();
  for (const c of changes) records.set(c.record, [...(records.get(c.record) || []), c]);
  return h("div", { class: "changes" }, [...records].map(([record, list]) => {
    const whole = list[0].field === "";
    const [sign, word] = !whole ? ["~", "changed"] : list[0].before === null && list[0].after === null ? ["~", ""] : list[0].before === null ? ["+", "new"] : list[0].after === null ? ["\u2212", "removed"] : ["~", "changed"];
    return h("div", { class: "change" }, h("div", {}, h("b", { class: "sign" }, sign), " ", h("code", {}, visible(record)), " ", h("span", { class: "hint" }, word)),
      whole ? (list[0].before === null && list[0].after === null ? null : h("div", { class: "fields" }, fieldsOf(list[0])))
        : h("div", { class: "fields" }, list.map((c) => h("div", {}, h("span", { class: "field" }, visible(c.field)), value(c.before, "was"), h("span", { class: "arrow" }, "\u2192"), value(c.after, "is")))));
  }));
}
/** The fields of a record that came or went. */
function fieldsOf(change) {
  const text = change.before ?? change.after, kind = change.before === null ? "is" : "was";
  try {
    const row = JSON.parse(text);
    if (row && typeof row === "object" && !Array.isArray(row)) return Object.entries(row).map(([k, v]) => h("div", {}, h("span", { class: "field" }, visible(k)), h("code", { class: kind }, visible(JSON.stringify(v)))));
  } catch { /* cut, or no object */ }
  return h("code", { class: kind }, visible(text));
}

/** One tool call and its answer: a line, and all of it when opened. */
function callBox(call, answer, byUser) {
  const args = clip(call.arguments, 400);
  const short = call.error ? args : args.replace(/^\{|\}$/g, "").replace(/"(\w+)": /g, "$1: ");
  const failed = Boolean(call.error || (answer && answer.error));
  const content = () => [
    call.error ? h("p", { class: "hint" }, `Not a valid call: ${visible(call.error)}`) : null,
    h("pre", {}, call.arguments ? longText(pretty(call.arguments)) : "(nothing)"),
    h("p", { class: "hint" }, answer ? (answer.fault ? `Answer; the environment misbehaved: ${spaced(answer.fault)}` : failed ? "Answer, an error; nothing was changed" : "Answer") : "No answer: the episode ended here."),
    answer ? h("pre", {}, longText(pretty(answer.text))) : null,
  ];
  const box = h("details", { class: failed ? "error" : null, ontoggle: () => box.open && box.fillIn() },
  h("summary", {}, failed ? h("span", { class: "flag" }, "\u2717") : null,
    h("span", { class: "line" }, byUser ? "user’s tool " : "", h("b", {}, visible(call.name || "(no name)")), ` ${visible(short)}`, answer ? ` → ${visible(clip(answer.text, 300))}` : "")));
  // Made when first opened: a page has thousands of calls.
  box.fillIn = () => box.children.length === 1 && box.append(...content().filter(Boolean));
  return box;
}
/** JSON text laid out over lines, every value as it was written: parsing would turn 3.0 into 3. */
function pretty(text) {
  if (text.length > 50000) return text;
  try {
    const value = JSON.parse(text);
    if (typeof value !== "object" || value === null) return text;
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

/** The five layers of this conversation, and the rules that it kept. */
function auditBox(row, c) {
  if (!c.audit) return h("p", { class: "hint" }, c.messages.length ? "Not audited: see the notes under Set-up." : "Nothing was said.");
  const words = { pass: ["good", "\u2713", "kept"], violation: ["bad", "\u2717", "broken"], unmeasured: ["unscored", "?", "only a reader can tell"], not_applicable: ["none", "\u00b7", "did not apply"] };
  const layers = Object.entries(c.audit.layers).map(([layer, status]) => {
    const [tone, sign, word] = words[status] || words.not_applicable;
    return h("li", { class: tone }, h("b", {}, sign), ` ${LAYER_NAMES[layer] || layer}`, h("span", { class: "sr" }, ` ${word}`));
  });
  const kept = c.audit.verdicts.filter((v) => v.status === "pass" && v.layer !== "outcome");
  const loose = c.audit.verdicts.filter((v) => v.status !== "pass" && v.layer !== "outcome" && !isNumber(v.at));
  return h("div", { class: "audit" }, h("ul", { class: "layers", "aria-label": "Layers of the audit" }, layers), loose.map(ruling),
    kept.length ? h("p", { class: "hint" }, `Kept: ${[...new Set(kept.map((v) => spaced(v.rule)))].join(", ")}.`) : null);
}

function verdict(row, c) {
  const [sign, word] = OUTCOMES[outcome(row)];
  const reasonText = visible(c.reason), cut = reasonText.indexOf(": ");
  const parts = cut > 0 ? reasonText.slice(cut + 2).split("; ") : [];
  const reason = parts.length > 1 && !reasonText.startsWith("not scored")
    ? [h("p", {}, sentence(reasonText.slice(0, cut) + ":")), h("ul", {}, parts.map((p) => h("li", {}, p)))] : reasonText ? h("p", {}, sentence(reasonText)) : null;
  const ending = (ENDINGS[row.termination] || [])[1];
  const shaped = isNumber(c.shaped) && c.shaped !== row.reward ? `, trained on as ${plain(c.shaped)}` : "";
  return h("div", { class: `verdict ${outcome(row)}` }, h("b", {}, `${sign} ${word}`), row.reward === null ? "" : ` · reward ${plain(row.reward)}${shaped}`, reason, c.detail ? h("p", {}, visible(c.detail)) : null,
    h("p", { class: "hint" }, `Ended by ${visible(row.termination)}${ending ? ` (${ending})` : ""} · ${plural(c.usage.steps, "agent step")}, ${plural(row.tokens, "token")}, ${plural(row.calls, "call")}${row.errors ? ` (${row.errors} failed)` : ""}${c.attempts > 1 ? ` · played ${c.attempts} times` : ""}${c.usage.cost ? ` · $${plain(c.usage.cost)}` : ""}`));
}
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?:…]$/.test(text) ? "" : ".");

/** Index of the first message in which two conversations differ; tool call ids do not count. */
function parting(a, b) {
  const form = (m) => JSON.stringify([m.role, m.text, (m.calls || []).map((c) => [c.name, c.arguments])]);
  const n = Math.min(a.messages.length, b.messages.length);
  for (let i = 0; i < n; i++) if (form(a.messages[i]) !== form(b.messages[i])) return i;
  return n;
}

/** A reason why a conversation cannot be shown. */
const cannotShow = (error) => h("p", { class: "empty" }, `This conversation cannot be shown: ${error.message}.`);
