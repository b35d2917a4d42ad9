/* The section that puts two conversations of one task side by side: those that one of two models solves and the
   other does not, or any two that the reader picks. */

const comparer = {};

function compare() {
  const box = byId("compare");
  const lead = h("p", { class: "lead" }), none = h("p", { class: "empty" });
  const columns = h("div", { class: "columns" });
  const select = h("select", { "aria-label": "Task", onchange: () => pick(Number(select.value)) });
  const where = h("span", { class: "hint", "aria-live": "polite" });
  const back = h("button", { type: "button", onclick: () => step(-1) }, "\u2190 Previous");
  const next = h("button", { type: "button", onclick: () => step(1) }, "Next \u2192");
  const sides = ["left", "right"].map((side, n) => h("select", { "aria-label": `Conversation on the ${side}`, onchange: (event) => {
    const row = rowOf.get(event.currentTarget.value);
    if (row) show(n ? now[0] : row, n ? row : now[1]);
  } }));
  const picker = h("div", { class: "picker" }, select, back, next, where);
  const choice = h("div", { class: "columns choice" }, sides);
  let now = [null, null], drawn = 0, options = [];

  function step(d) {
    const at = options.indexOf(Number(select.value));
    if (options[at + d] !== undefined) pick(options[at + d]);
  }
  const rowAt = ([source, offset]) => rowOf.get(`${DATA.sources[source].key}/${offset}`);
  const here = (p) => rowAt(p.before) && rowAt(p.after);
  function pick(n, link = true) {
    const pair = DATA.pairs[n];
    if (pair) return show(rowAt(pair.before), rowAt(pair.after), { link });
  }
  /** Two conversations of one task. `go` brings the section into view, as a place to come back from. */
  async function show(a, b, { go = false, link = true } = {}) {
    now = [a, b];
    const mine = ++drawn;
    none.hidden = true;
    picker.hidden = !DATA.pairs.length;
    choice.hidden = columns.hidden = false;
    const n = DATA.pairs.findIndex((p) => rowAt(p.before) === a && rowAt(p.after) === b);
    const own = select.querySelector("[data-own]");
    if (own) own.remove();
    if (n < 0) select.prepend(h("option", { value: "-1", "data-own": "" }, `Your choice · ${visible(a.kind || "")} · ${visible(a.task)}`));
    select.value = String(n);
    const at = options.indexOf(n);
    back.disabled = at <= 0;
    next.disabled = at === options.length - 1;
    where.textContent = at >= 0 ? `${at + 1} of ${options.length}` : "";
    const same = ROWS.filter((r) => r.task === a.task && r.domain === a.domain);
    sides.forEach((side, k) => {
      // Of many rollouts of a task, the nearest few hundred are offered.
      const list = same.slice(0, 500);
      for (const row of now) if (!list.includes(row)) list.push(row);
      side.replaceChildren(...list.map((r) => h("option", { value: r.key }, `${OUTCOMES[outcome(r)][0]} ${visible(variantOf(r))}`)));
      side.value = now[k].key;
    });
    if (link) links.pair(a, b, go);
    if (go) box.scrollIntoView();
    const [x, y] = await Promise.all([a, b].map((row) => body(row).catch((error) => error)));
    if (mine !== drawn) return;
    const failed = [x, y].some((c) => c instanceof Error);
    const parted = failed ? -1 : parting(x, y);
    columns.replaceChildren(...[[a, x], [b, y]].map(([row, c]) => {
      try {
        if (c instanceof Error) throw c;
        return talk(row, c, parted);
      } catch (error) {
        return cannotShow(error);
      }
    }));
  }

  function fillPairs() {
    const pairs = DATA.pairs.map((p, n) => [p, n]).filter(([p]) => here(p));
    select.replaceChildren();
    if (DATA.pair_evals[0] !== null) {
      const [before, after] = DATA.pair_evals.map((i) => DATA.evals[i].label);
      const { gained, lost } = DATA.pairs_in_all;
      lead.textContent = `The same task, played by both models. By the first sample of each task, ${after} solves ${plural(gained, "task")} that ${inText(before)} fails, and fails ${lost} that ${inText(before)} solves. Any two conversations of a task can be picked.`;
      for (const [up, title] of [[true, `${after} solves, ${inText(before)} fails`], [false, `${before} solves, ${after} fails`]]) {
        const list = pairs.filter(([p]) => p.gained === up), inAll = up ? gained : lost;
        const byKind = Map.groupBy ? Map.groupBy(list, ([p]) => p.kind) : list.reduce((m, x) => m.set(x[0].kind, [...(m.get(x[0].kind) || []), x]), new Map());
        if (list.length) select.append(h("optgroup", { label: `${title}${list.length < inAll ? ` (${list.length} of ${inAll})` : ` (${inAll})`}` }, [...byKind.values()].flat().map(([p, n]) => h("option", { value: n }, visible(`${p.kind} · ${p.task}`)))));
      }
    } else lead.textContent = "Any two conversations of one task, from the reader below.";
    options = [...select.options].map((o) => Number(o.value));
    none.textContent = DATA.pair_evals[0] === null
      ? "This compares the cold-start model with the RL model on the same task; it needs evaluations of both. Until then, pick two conversations of one task in the reader below: open one, and choose “Compare with…”."
      : "There is no task that one of the two models solves and the other does not, among the stored conversations.";
    none.hidden = pairs.length > 0 || now[0] !== null;
    picker.hidden = !pairs.length;
    choice.hidden = columns.hidden = !pairs.length && now[0] === null;
  }
  function refresh() {
    fillPairs();
    const again = now[0] && now.map((row) => rowOf.get(row.key));
    if (again && again.every(Boolean)) show(again[0], again[1], { link: false });
    else if (options.length) pick(options[0], false);
  }
  box.append(lead, picker, choice, columns, none);
  Object.assign(comparer, { show, refresh, step });
  fillPairs();
  if (options.length && !links.wanted().a) pick(options[0], false);
}
compare.update = () => comparer.refresh();
compare.reads = ["pairs", "pair_evals", "pairs_in_all", "sources"];
