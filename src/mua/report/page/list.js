/* A list of any length of which only what is in view is drawn. */

const ROW_HEIGHT = 50;

/** `draw(item)` gives the children of a row, `choose(n)` is called when the reader picks one. */
function virtualList(label, draw, choose) {
  let items = [], chosen = -1, first = 0, last = -1;
  const inner = h("div", { class: "inner", role: "presentation" });
  const node = h("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": label, onkeydown: onKey, onscroll: () => paint() }, inner);
  new ResizeObserver(() => paint()).observe(node);

  function paint(again = false) {
    const from = Math.max(0, Math.floor(node.scrollTop / ROW_HEIGHT) - 6);
    const to = Math.min(items.length, Math.ceil((node.scrollTop + node.clientHeight) / ROW_HEIGHT) + 6);
    if (!again && from === first && to === last) return;
    [first, last] = [from, to];
    inner.replaceChildren(...items.slice(from, to).map((item, k) => {
      const n = from + k;
      const row = h("div", { role: "option", id: `option-${n}`, "aria-selected": String(n === chosen), "aria-setsize": items.length, "aria-posinset": n + 1, css: { top: `${n * ROW_HEIGHT}px` }, onclick: () => choose(n) }, draw(item));
      row.dataset.stage = stageOf(modelOf(item));
      return row;
    }));
  }
  function onKey(event) {
    const page = Math.max(1, Math.floor(node.clientHeight / ROW_HEIGHT) - 1);
    const jump = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity }[event.key];
    if (!jump || !items.length || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(items.length - 1, chosen + jump)));
  }
  return {
    node,
    /** New items; the place in the list stays where it was. */
    show(list, which) {
      items = list;
      chosen = which;
      inner.style.height = `${items.length * ROW_HEIGHT}px`;
      paint(true);
    },
    select(n, scroll = true) {
      chosen = n;
      const top = n * ROW_HEIGHT;
      if (scroll && n >= 0) {
        if (top < node.scrollTop) node.scrollTop = top;
        else if (top + ROW_HEIGHT > node.scrollTop + node.clientHeight) node.scrollTop = top + ROW_HEIGHT - node.clientHeight + 8;
      }
      if (n >= 0) node.setAttribute("aria-activedescendant", `option-${n}`);
      paint(true);
    },
  };
}
