/* Links to a conversation (`#c=SOURCE/OFFSET`) and to two of one task (`#task=…&a=…&b=…`): they follow the reader,
   and open what they name. */

const links = {
  wanted() {
    const out = {};
    for (const part of location.hash.slice(1).split("&")) {
      const at = part.indexOf("=");
      if (at < 1) continue;
      try {
        out[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1));
      } catch { /* not a link of ours */ }
    }
    return out;
  },
  toConversation: (row) => `#c=${escaped(row.key)}`,
  toPair: (a, b) => `#task=${escaped(a.task)}&a=${escaped(a.key)}&b=${escaped(b.key)}`,
  conversation: (row) => follow(links.toConversation(row), false),
  pair: (a, b, go) => follow(links.toPair(a, b), go),
  /** Opens what the address names. */
  open() {
    const { c, a, b } = links.wanted();
    if (c) {
      if (browser.ready) browser.openKey(c);
      byId("browse").scrollIntoView();
    } else if (a && b) {
      const rows = [a, b].map((key) => rowOf.get(key));
      if (rows.every(Boolean) && comparer.show) comparer.show(rows[0], rows[1], { link: false });
      else byId("compare").append(h("p", { class: "empty" }, "The linked conversations are not in this page: the run has changed, or they were left out for their size."));
      byId("compare").scrollIntoView();
    }
  },
};
/** Lone surrogates have no place in an address. */
const escaped = (text) => encodeURIComponent(text.toWellFormed ? text.toWellFormed() : text.replace(/[\ud800-\udfff]/g, "\ufffd")).replaceAll("%2F", "/").replaceAll("%3A", ":");
let following = 0;
/** Puts a link into the address bar; `go`: as a place to come back from. Browsers limit how often. */
function follow(hash, go) {
  clearTimeout(following);
  const put = () => {
    const theme = links.wanted().theme;
    try {
      history[go ? "pushState" : "replaceState"](null, "", hash + (theme ? `&theme=${theme}` : ""));
    } catch { /* then the address stays */ }
  };
  if (go) put();
  else following = setTimeout(put, 150);
}
