/* The exact tokens of a conversation: sampled or rendered, and how likely each sampled one was. */

const MOST_TOKENS = 6000;

/** Shown instead of the messages; `trace` is what `tokensOf` gives. */
function tokenView(trace) {
  const sampled = trace.segments.reduce((sum, s) => sum + s.logprobs.filter((p) => p !== null).length, 0);
  const all = trace.segments.reduce((sum, s) => sum + s.ids.length, 0);
  const box = h("div", { class: "tokens" }, h("p", { class: "hint" }, `${plural(all, "token")}, of which ${sampled.toLocaleString("en")} were sampled: these, and only these, are trained on. The stronger the colour, the less likely the token was when it was drawn.${Object.keys(trace.pieces).length ? "" : " There is no tokenizer in the run folder, so ids are shown."}`),
    h("div", { class: "legend" }, h("span", { class: "key" }, h("span", { class: "tok" }, "rendered")), [0.99, 0.5, 0.05].map((p) => h("span", { class: "key" }, h("span", { class: "tok sampled", css: { "--surprise": shade(Math.log(p)) } }, `sampled, ${100 * p}%`)))));
  trace.segments.forEach((segment, n) => {
    if (trace.segments.length > 1) box.append(h("h3", {}, `Segment ${n + 1}: the template rewrote the history`));
    const place = h("div", { class: "stream", onpointerover: (event) => {
      const at = event.target.dataset ? event.target.dataset.i : undefined;
      if (at === undefined) return hideTip();
      const i = Number(at), p = segment.logprobs[i];
      showTip([{ label: "id", value: String(segment.ids[i]) }, ...(p === null ? [] : [{ label: "log-probability", value: signed(p.toFixed(4)) }, { label: "probability", value: percent(Math.exp(p)) }])], p === null ? "rendered" : "sampled", event.clientX, event.clientY + 24);
    }, onpointerleave: hideTip });
    const draw = (from, to) => place.append(...segment.ids.slice(from, to).map((id, k) => {
      const i = from + k, p = segment.logprobs[i], piece = trace.pieces[id];
      const text = piece === undefined ? `${id} ` : visible(piece).replaceAll("\n", "\u23ce\n");
      return p === null ? h("span", { class: "tok", "data-i": i }, text)
        : h("span", { class: "tok sampled", "data-i": i, css: { "--surprise": shade(p) }, title: `sampled, log-probability ${signed(p.toFixed(3))}` }, text);
    }));
    draw(0, MOST_TOKENS);
    box.append(place);
    if (segment.ids.length > MOST_TOKENS) {
      const more = h("button", { type: "button", onclick: () => { draw(MOST_TOKENS); more.remove(); } }, `Show all ${segment.ids.length.toLocaleString("en")} tokens`);
      box.append(more);
    }
  });
  return box;
}
/** Share of the full colour: none at probability 1, all at 1 in 1,000. */
const shade = (logprob) => `${(12 + 70 * Math.min(1, Math.max(0, -logprob) / 6.9)).toFixed(0)}%`;
