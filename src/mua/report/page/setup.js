/* The section with what was run. */

function setup() {
  const box = byId("setup");
  const { config, manifest, summary } = DATA.setup;
  const parts = [["config.yaml", config], ["manifest.json", Object.keys(manifest).length ? JSON.stringify(manifest, null, 2) : ""], ["summary.json", Object.keys(summary).length ? JSON.stringify(summary, null, 2) : ""]];
  const there = parts.filter(([, text]) => text);
  if (DATA.notes.length) box.append(h("ul", { class: "notes" }, DATA.notes.map((n) => h("li", {}, visible(n)))));
  for (const [name, text] of there) box.append(h("details", { class: "fold" }, h("summary", {}, h("code", {}, name)), h("pre", {}, text)));
  if (!there.length && !DATA.notes.length) box.append(h("p", { class: "empty" }, "The run folder holds neither config.yaml nor manifest.json."));
}
