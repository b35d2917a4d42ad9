/* The section with all conversations: filters, search over everything that was said, list, reader. */

const browser = { ready: false };

function browse() {
  const box = byId("browse");
  const list = virtualList("Conversations", rowLine, (n) => choose(n));
  const pane = h("div", { class: "pane", "aria-live": "off" });
  const counted = h("p", { class: "lead", "data-figure": "shown" });
  const number = h("span", { class: "hint", "aria-live": "polite", "data-figure": "found" });
  const empty = h("p", { class: "empty" });
  let found = [], chosen = null, opened = 0, wanted = "";
  const view = { tokens: false };

  // ------------------------------------------------------------ filters

  const fields = [
    { name: "Model", get: (r) => [sourceOf(r).label], keep: true },
    { name: "Kind", get: (r) => [r.kind] },
    { name: "Outcome", get: (r) => [OUTCOMES[outcome(r)][1]] },
    { name: "Ended by", get: (r) => [r.termination], show: spaced },
    { name: "Rule broken", get: (r) => r.broken || NONE, group: (v) => LAYER_NAMES[v.split("/")[0]] || v.split("/")[0], show: (v) => ruleName(v.slice(v.indexOf("/") + 1)) },
    { name: "Tool called", get: (r) => r.tools },
    { name: "Persona", get: (r) => (r.persona ? [r.persona] : NONE), show: spaced },
  ];
  for (const field of fields) {
    field.select = h("select", { "aria-label": field.name, onchange: () => draw() });
    field.label = h("label", {}, field.name, field.select);
  }
  const stepBox = (name) => h("input", { type: "number", inputmode: "numeric", "aria-label": `${name} step`, placeholder: name === "First" ? "first" : "last", oninput: () => draw() });
  const [low, high] = [stepBox("First"), stepBox("Last")];
  const stepLabel = h("label", { class: "steps" }, "Steps", h("span", {}, low, "–", high));
  const order = h("select", { "aria-label": "Order", onchange: () => draw() }, [["", "as recorded"], ["step", "latest step"], ["length", "longest"], ["errors", "most failed calls"], ["broken", "most rules broken"], ["tokens", "most tokens"]].map(([value, text]) => h("option", { value }, text)));
  const search = h("input", { type: "search", placeholder: "anything said or called", "aria-label": "Search", oninput: () => look(), onkeydown: (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    search.value = "";
    look();
    search.blur();
  } });
  const stop = h("button", { type: "button", class: "small", hidden: true, onclick: () => cancel("stopped") }, "Stop");
  const clear = h("button", { type: "button", class: "small", hidden: true, onclick: () => filter({}) }, "Clear filters");
  const progress = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Search" });
  const more = h("details", { class: "more-filters" }, h("summary", {}, "Filters"), h("div", { class: "filters" }, fields.map((f) => f.label), stepLabel, h("label", {}, "Order", order)));
  more.open = innerWidth > 700;

  function fillFilters() {
    for (const field of fields) {
      const counts = new Map();
      for (const row of ROWS) for (const value of field.get(row)) counts.set(value, (counts.get(value) || 0) + 1);
      const values = [...counts.keys()];
      if (!field.keep) values.sort();
      const option = (v) => h("option", { value: "=" + v }, `${clip(visible((field.show || String)(v) || "–"), 60)} (${counts.get(v).toLocaleString("en")})`);
      const before = field.select.value;
      const children = [h("option", { value: "" }, "all")];
      if (field.group) {
        for (const name of new Set(values.map(field.group))) {
          const inside = values.filter((v) => field.group(v) === name), prefix = inside[0].split("/")[0];
          children.push(h("optgroup", { label: name }, h("option", { value: "^" + prefix }, `${name}: any rule`), inside.map(option)));
        }
        if (ROWS.some((r) => r.broken && !r.broken.length)) children.push(h("option", { value: "!" }, "no rule broken"));
      } else children.push(...values.map(option));
      field.select.replaceChildren(...children);
      field.select.value = before;
      if (field.select.selectedIndex < 0) field.select.value = "";
      field.label.hidden = values.length < (field.group || field.name === "Tool called" ? 1 : 2) && !field.select.value;
    }
    stepLabel.hidden = !ROWS.some((r) => r.step >= 0);
  }
  function passes(field, row) {
    const wish = field.select.value;
    if (!wish) return true;
    if (wish === "!") return Boolean(row.broken) && !row.broken.length;
    const values = field.get(row);
    return wish[0] === "^" ? values.some((v) => v.startsWith(wish.slice(1) + "/")) : values.includes(wish.slice(1));
  }
  /** Sets the filters to these ({Kind: value, …}) and all others to "all". */
  function filter(wishes, text = "") {
    for (const field of fields) {
      const wish = wishes[field.name];
      field.select.value = wish === undefined ? "" : /^[=^!]/.test(wish) ? wish : "=" + wish;
      if (field.select.selectedIndex < 0) field.select.value = "";
    }
    low.value = wishes.low ?? "";
    high.value = wishes.high ?? "";
    search.value = text;
    look();
  }

  function draw(stay = false) {
    const [from, to] = [low, high].map((x) => (x.value === "" ? null : Number(x.value)));
    const used = fields.filter((f) => f.select.value);
    const steps = from !== null || to !== null;
    found = ROWS.filter((r) => used.every((f) => passes(f, r)) && (!steps || (r.step >= (from ?? 0) && r.step <= (to ?? Infinity))) && (!matches || matches.has(r.key)));
    const by = { step: (r) => r.step, length: (r) => r.length, errors: (r) => r.errors, tokens: (r) => r.tokens, broken: (r) => (r.broken || NONE).length }[order.value];
    if (by) found.sort((a, b) => by(b) - by(a) || a.n - b.n);
    number.textContent = plural(found.length, "conversation") + (searched === null ? "" : ` with “${clip(search.value.trim(), 30)}”${searched}`);
    clear.hidden = !used.length && !steps && !search.value;
    empty.hidden = found.length > 0;
    empty.textContent = searching ? "Nothing found so far." : "Nothing fits these filters.";
    const keep = chosen ? found.findIndex((r) => r.key === chosen.key) : -1;
    list.show(found, keep);
    if (!stay && keep < 0) {
      list.node.scrollTop = 0;
      if (found.length && !searching) choose(0, false);
    }
  }

  // ------------------------------------------------------------ search

  let matches = null, searched = null, searching = 0, timer = 0;
  const said = new Map(); // of a live page: what was fetched need not be fetched again
  let saidSize = 0;
  const wordsOf = (row, c) => [row.task, c.reason, ...c.messages.flatMap((m) => [m.text, m.thinking || "", ...(m.calls || []).map((x) => `${x.name} ${x.arguments}`)])].join("\n").toLowerCase();
  function cancel(how) {
    searching = 0;
    progress.hidden = stop.hidden = true;
    searched = how ? `, ${how}` : null;
    draw();
  }
  function look() {
    clearTimeout(timer);
    const text = search.value.trim().toLowerCase();
    if (!text) {
      matches = null;
      return cancel("");
    }
    timer = setTimeout(() => find(text), 120);
  }
  /** Looks through all conversations, block by block, and shows what it has found as it goes. */
  async function find(text) {
    const mine = (searching = performance.now());
    matches = new Set();
    searched = "";
    progress.hidden = stop.hidden = false;
    progress.value = 0;
    const inOrder = DATA.live ? ROWS : [...ROWS].sort((a, b) => a.block - b.block || a.place - b.place);
    let drawn = performance.now(), paused = drawn;
    const lanes = DATA.live ? 6 : 1;
    let next = 0, failed = 0;
    const lane = async () => {
      while (next < inOrder.length && searching === mine) {
        const row = inOrder[next++];
        let words = said.get(row.key);
        if (words === undefined) {
          try {
            // A block is read once for all of its conversations, and not kept: all of them together may be large.
            words = wordsOf(row, DATA.live ? await body(row) : (await blockFor(row.block))[row.place]);
          } catch {
            failed++;
            continue;
          }
          if (DATA.live && saidSize < 5e7) {
            said.set(row.key, words);
            saidSize += words.length;
          }
        }
        if (words.includes(text)) matches.add(row.key);
        const now = performance.now();
        if (now - paused > 24) { // let the page breathe
          await new Promise((go) => setTimeout(go));
          paused = performance.now();
        }
        if (now - drawn > 250 && searching === mine) {
          drawn = now;
          progress.value = next / inOrder.length;
          searched = `, ${Math.round((100 * next) / inOrder.length)}% searched`;
          draw(true);
        }
      }
    };
    let current = -1, held = null;
    const blockFor = (n) => {
      if (n !== current) [current, held] = [n, inflate(`b${n}`)];
      return held;
    };
    await Promise.all(Array.from({ length: lanes }, lane));
    if (searching !== mine) return;
    cancel("");
    searched = failed ? `, ${failed} could not be read` : "";
    draw();
  }

  // ------------------------------------------------------------ list and reader

  function rowLine(row) {
    const [sign, word] = OUTCOMES[outcome(row)];
    const rules = row.broken && row.broken.length;
    return [
      h("span", { class: `sign ${outcome(row)}`, title: word, role: "img", "aria-label": word }, sign), h("span", { class: "what" }, visible(row.kind || row.task)),
      h("span", { class: "side" }, rules ? h("span", { class: "broken", title: `${plural(rules, "rule")} broken` }, `${rules} \u26a0\uFE0E`) : null, h("span", { class: "dot" }), evalOf(row) ? evalOf(row).label : row.step >= 0 ? `step ${row.step}` : sourceOf(row).label),
      h("span", { class: "sub" }, visible(row.first || row.task))];
  }
  function choose(n, scroll = true, link = true) {
    list.select(n, scroll);
    const row = found[n];
    if (!row) return;
    if (link) links.conversation(row);
    if (chosen && row.key === chosen.key && pane.firstChild) return;
    open(row);
  }
  async function open(row) {
    chosen = row;
    const mine = ++opened;
    const late = setTimeout(() => mine === opened && pane.classList.add("waiting"), 150);
    try {
      const c = await body(row);
      if (mine === opened) await show(row, c, mine);
    } catch (error) {
      if (mine === opened) pane.replaceChildren(cannotShow(error));
    }
    clearTimeout(late);
    if (mine === opened) pane.classList.remove("waiting");
  }
  async function show(row, c, mine) {
    const others = ROWS.filter((r) => r.task === row.task && r.key !== row.key && r.domain === row.domain);
    const compareWith = h("select", { id: "compare-with", "aria-label": "Compare with", disabled: !others.length, onchange: () => {
      const other = rowOf.get(compareWith.value);
      compareWith.value = "";
      if (other) comparer.show(row, other, { go: true });
    } }, h("option", { value: "" }, others.length ? `Compare with… (${others.length})` : "No other of this task"), others.slice(0, 500).map((r) => h("option", { value: r.key }, `${OUTCOMES[outcome(r)][0]} ${visible(variantOf(r))}`)));
    const can = row.traced && (c.trace || row.tblock >= 0);
    const toggle = h("button", { type: "button", id: "tokens", "aria-pressed": String(view.tokens && can), disabled: !can, title: can ? "Which tokens were sampled, and how likely they were (t)" : "This conversation was stored without its tokens", onclick: () => {
      view.tokens = !view.tokens;
      show(row, c, opened);
    } }, "Tokens");
    const copy = h("button", { type: "button", onclick: async () => {
      const link = location.href.split("#")[0] + links.toConversation(row);
      try {
        await navigator.clipboard.writeText(link);
        copy.textContent = "Copied";
      } catch {
        copy.textContent = "In the address bar";
      }
      setTimeout(() => (copy.textContent = "Copy link"), 1500);
    } }, "Copy link");
    const at = found.findIndex((r) => r.key === row.key);
    const step = (d) => h("button", { type: "button", disabled: at < 0 || !found[at + d], onclick: () => choose(at + d) }, d < 0 ? "\u2190 Previous" : "Next \u2192");
    const bar = h("div", { class: "picker" }, step(-1), step(1), h("span", { class: "gap" }), compareWith, toggle, copy);
    let content = talk(row, c);
    if (view.tokens && can) {
      try {
        content = h("article", { class: "talk", "data-stage": stageOf(modelOf(row)), "data-conversation": row.key }, content.querySelector("header"), tokenView(await tokensOf(row, c)));
      } catch (error) {
        content = cannotShow(error);
      }
    }
    if (mine === opened) pane.replaceChildren(bar, content);
  }

  /** Opens the conversation of a link; filters that hide it are taken back. */
  function openKey(key) {
    const row = rowOf.get(key);
    if (!row) {
      wanted = key;
      pane.replaceChildren(h("p", { class: "empty" }, "The linked conversation is not in this page: the run has changed, or it was left out for its size."));
      return false;
    }
    chosen = row;
    if (!found.includes(row)) filter({});
    const n = found.findIndex((r) => r.key === key);
    list.select(n);
    list.node.scrollTop = Math.max(0, n * ROW_HEIGHT - list.node.clientHeight / 3);
    open(row);
    return true;
  }

  function count() {
    const inAll = DATA.conversations_in_all, here = ROWS.length;
    const rollouts = ROWS.filter((r) => r.step >= 0).length;
    const parts = [rollouts < here ? plural(here - rollouts, "evaluation conversation") : "", rollouts ? plural(rollouts, "training rollout") : ""].filter(Boolean).join(" and ");
    counted.textContent = !here ? "" : here >= inAll ? `All of them: ${parts}.` : `${parts}, of ${inAll.toLocaleString("en")} in all; the others are in the run folder.`;
  }
  function refresh() {
    if (chosen) chosen = rowOf.get(chosen.key) || chosen;
    fillFilters();
    count();
    none.hidden = ROWS.length > 0;
    whole.hidden = !ROWS.length;
    draw(true);
    if (!chosen && found.length) choose(0, false, false);
    if (wanted && rowOf.has(wanted)) {
      const key = wanted;
      wanted = "";
      openKey(key);
    }
  }

  const none = h("p", { class: "empty" }, "No conversation is stored in this run yet.");
  const whole = h("div", {}, h("div", { class: "find" }, h("label", { class: "text" }, h("span", { class: "sr" }, "Search"), search), clear), more,
    h("div", { class: "state" }, number, progress, stop), h("div", { class: "reader" }, h("div", { class: "listing" }, empty, list.node), pane));
  box.append(counted, none, whole);
  Object.assign(browser, { ready: true, filter, openKey, refresh, search, list: list.node,
    step: (d) => found.length && choose(Math.max(0, Math.min(found.length - 1, (chosen ? found.findIndex((r) => r.key === chosen.key) : -1) + d))),
    toggleTokens: () => { const b = byId("tokens"); if (b && !b.disabled) b.click(); },
    compare: () => { const c = byId("compare-with"); if (c && !c.disabled) { c.focus(); try { c.showPicker(); } catch { /* then it is focused */ } } },
    /** Filters, and brings the section into view. */
    go: (wishes) => { filter(wishes); box.scrollIntoView(); } });
  // The last stage is what most readers want to see first.
  fillFilters();
  count();
  none.hidden = ROWS.length > 0;
  whole.hidden = !ROWS.length;
  const best = DATA.groups.length ? DATA.groups[0].evals.filter((i) => STAGES.includes(DATA.evals[i].model)).at(-1) : undefined;
  const source = DATA.sources.findIndex((x) => x.eval === best && best !== undefined);
  if (source >= 0 && ROWS.some((r) => r.source === source)) fields[0].select.value = "=" + DATA.sources[source].label;
  draw(true);
  if (found.length && !links.wanted().c) choose(0, false, false);
}
browse.update = () => browser.refresh();
browse.reads = ["sources", "conversations_in_all", "index", "audited"];
