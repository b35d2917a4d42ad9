/* The section on what the run cost: seconds by stage, tokens, dollars. */

function cost() {
  const box = byId("cost");
  const { stages, training, evals } = DATA.cost;
  const money = (x) => (isNumber(x) ? (x ? `$${x < 0.01 ? plain(x) : x.toFixed(2)}` : "$0") : "–");
  const tokens = (x) => (isNumber(x) ? count(Math.round(x)) : "–");
  const time = (x) => (isNumber(x) ? duration(x) : "–");
  const shown = evals.filter((e) => isNumber(e.seconds) || isNumber(e.agent_tokens));
  if (!stages.length && !training.steps && !shown.length) {
    box.append(h("p", { class: "empty" }, "Nothing has been measured yet."));
    return;
  }
  box.append(h("p", { class: "lead" }, "Time by stage, tokens sampled, and what endpoints were paid."));
  const both = h("div", { class: "two" });
  if (stages.length) both.append(stagesPanel(stages));
  if (training.steps) {
    const facts = [["Steps", plain(training.steps)], ["Agent tokens", tokens(training.agent_tokens)], ["User tokens", tokens(training.user_tokens)], ["Paid for the user", money(training.user_cost)], ["Rollouts", time(training.seconds_rollout)], ["Updates", time(training.seconds_update)]];
    both.append(h("div", { class: "panel" }, h("header", {}, h("b", {}, "RL"), h("span", { class: "hint" }, "all steps together")), h("dl", { class: "facts three" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { "data-cost": name }, value))))));
  }
  if (both.childElementCount) box.append(both);
  if (shown.length) {
    const columns = [["conversations", (e) => plain(e.episodes)], ["agent tokens", (e) => tokens(e.agent_tokens)], ["time", (e) => time(e.seconds)], ["user paid", (e) => money(e.user_cost)], ["agent paid", (e) => money(e.agent_cost)]];
    box.append(h("div", { class: "panel", css: { "margin-top": "16px" } }, h("header", {}, h("b", {}, "Evaluations")), h("div", { class: "scroll" }, h("table", { "data-table": "cost" },
      h("thead", {}, h("tr", {}, h("th", {}, "evaluation"), columns.map(([name]) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, shown.map((e) => h("tr", {}, h("th", { scope: "row" }, e.name), columns.map(([, get]) => h("td", {}, get(e))))))))));
  }
}

/** One bar over the stages of a run. */
function stagesPanel(stages) {
  const total = stages.reduce((sum, [, n]) => sum + n, 0);
  const colour = (n) => `var(--s${n % 8})`;
  const plot = h("div", {});
  responsive(plot, (width) => {
    let from = 0;
    plot.replaceChildren(s("svg", { viewBox: `0 0 ${width} 22`, role: "img", "aria-label": stages.map(([name, n]) => `${spaced(name)} ${duration(n)}`).join(", ") }, stages.map(([name, n], k) => {
      const part = s("rect", { x: from * width, y: 2, width: Math.max(1, (n / total) * width - 1.5), height: 18, rx: 2, fill: colour(k), onpointermove: (event) => showTip([{ label: spaced(name), value: `${duration(n)} (${percent(n / total)})`, colour: colour(k) }], "Time", event.clientX, event.clientY), onpointerleave: hideTip });
      from += n / total;
      return part;
    })));
  });
  return h("div", { class: "panel" }, h("header", {}, h("b", {}, "Time"), h("span", { class: "hint" }, `${duration(total)} in all`)), plot,
    h("ul", { class: "parts" }, stages.map(([name, n], k) => h("li", {}, h("span", {}, h("span", { class: "swatch", css: { background: colour(k) } }), spaced(name)), h("b", {}, duration(n))))));
}
