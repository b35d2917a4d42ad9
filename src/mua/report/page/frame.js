/* What is around the sections: theme, navigation, keys, printing, `start`, which draws them, and `update`, which
   draws those again whose data has changed. */

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
  for (const id of links.keys()) if (byId(id)) seen.observe(byId(id));
}

/** Keys that work anywhere: {key: [what it does, function]}. "?" shows them. */
function keys(known) {
  const row = ([key, [words]]) => h("div", {}, h("kbd", {}, key), h("span", {}, words));
  const help = h("dialog", { id: "help", "aria-label": "Keys", onclick: () => help.close() }, h("h2", {}, "Keys"), h("div", { class: "keys" }, Object.entries({ ...known, "?": ["this list"], Esc: ["close it; end the search"] }).map(row)),
    h("p", { class: "hint" }, "In the list of conversations the arrow keys, Page Up and Down, Home and End move; on a chart they read its values."));
  document.body.append(help);
  const button = byId("keys");
  if (button) button.addEventListener("click", () => help.showModal());
  addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, select, textarea");
    if (event.key === "Escape" && typing) return event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.key === "?" && !help.open) help.showModal();
    else if (known[event.key] && !help.open) {
      event.preventDefault();
      known[event.key][1]();
    }
  });
}

/** On paper everything of the open conversations is there, not only what was unfolded. */
function printing() {
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll(".talk details:not([open])")];
    for (const box of unfolded) {
      box.open = true;
      if (box.fillIn) box.fillIn(); // now: the toggle event comes too late
    }
  });
  addEventListener("afterprint", () => {
    for (const box of unfolded) box.open = false;
    unfolded = [];
  });
}

let SECTIONS = [];
const failures = new Set();

/** Draws one section into the element that bears its name. Data nobody foresaw costs its own section only. */
function drawSection(section) {
  const box = byId(section.name);
  try {
    section();
    failures.delete(section.name);
  } catch (error) {
    failures.add(section.name);
    console.error(error);
    box.append(h("p", { class: "empty" }, `This part could not be drawn: ${error.message}`));
  }
  for (const inner of box.querySelectorAll("div")) if (inner.redraw) drawNow(inner);
}
const readiness = () => (document.documentElement.dataset.ready = String(failures.size === 0));

/** Draws the page. A section is a function named like its element; `section.reads` are the keys of DATA that it
 *  draws, and `section.update`, where it has one, is called instead of drawing it again. */
function start(sections) {
  SECTIONS = sections;
  theme();
  for (const section of sections) drawSection(section);
  navigation();
  printing();
  readiness();
}

/** New data: the sections that it changes are drawn again; what was unfolded, filtered, scrolled to or focused
 *  stays. `taken` is called between taking the data and drawing. */
function update(data, taken = () => {}) {
  const old = DATA;
  DATA = data;
  taken();
  const differs = (key) => JSON.stringify(old[key]) !== JSON.stringify(data[key]);
  const changed = SECTIONS.filter((s) => (s.reads || Object.keys(data)).some(differs));
  // What stands below the bar keeps its place.
  const anchor = SECTIONS.map((s) => byId(s.name)).find((box) => box.getBoundingClientRect().bottom > 60);
  const top = anchor && anchor.getBoundingClientRect().top;
  for (const section of changed) {
    const box = byId(section.name);
    if (section.update && box.childElementCount > 1 && !failures.has(section.name)) {
      section.update();
      continue;
    }
    const open = new Set([...box.querySelectorAll("details[open] > summary")].map((x) => x.textContent));
    const active = box.contains(document.activeElement) ? document.activeElement.getAttribute("data-chart") : null;
    box.replaceChildren(...box.querySelectorAll(":scope > h2"));
    drawSection(section);
    for (const x of box.querySelectorAll("details:not([open]) > summary")) if (open.has(x.textContent)) x.parentElement.open = true;
    if (active) {
      const again = box.querySelector(`[data-chart="${CSS.escape(active)}"]`);
      if (again) again.focus({ preventScroll: true });
    }
  }
  if (anchor) scrollBy({ top: anchor.getBoundingClientRect().top - top, behavior: "instant" });
  readiness();
  return changed.map((s) => s.name);
}
