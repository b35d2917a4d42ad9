/* A run's report: reads the index, draws the sections, opens what the address names, follows a live run. */

hero.reads = ["title", "finished", "steps", "facts", "headline", "live"];
results.reads = ["evals", "groups", "faults"];
kinds.reads = ["evals", "groups"];
behaviour.reads = ["evals", "groups", "audited"];
training.reads = ["metrics", "sft", "tool_errors", "problems"];
cost.reads = ["cost", "evals"];
setup.reads = ["setup", "notes"];

(async () => {
  try {
    readIndex(DATA.index || await inflate("index"));
  } catch (error) {
    console.error(error);
    DATA.notes.push(`The list of conversations cannot be read: ${error.message}`);
  }
  start([hero, results, kinds, behaviour, training, compare, browse, cost, setup]);
  keys({
    "/": ["search all conversations", () => { byId("browse").scrollIntoView(); browser.search.focus(); }],
    j: ["next conversation", () => browser.step(1)], k: ["previous conversation", () => browser.step(-1)],
    c: ["compare the open conversation with another of its task", () => browser.compare()],
    t: ["its tokens, and back", () => browser.toggleTokens()],
    n: ["next pair side by side", () => comparer.step(1)], p: ["previous pair", () => comparer.step(-1)],
  });
  links.open();
  addEventListener("hashchange", () => links.open());
  if (DATA.live) {
    document.querySelector("footer").textContent = "Served live by mua from the files of one run; it follows them as they grow.";
    listen();
  }
})();

/** Follows the run: on every piece of news, the new data is fetched and drawn. */
function listen() {
  const news = new EventSource("events");
  let busy = false, again = false;
  const show = (state) => (document.documentElement.dataset.link = state);
  async function take() {
    if (busy) return void (again = true);
    busy = true;
    try {
      const data = { ...(await fromServer("data.json")), live: true };
      update(data, () => readIndex(data.index));
    } catch (error) {
      console.error(error);
    }
    busy = false;
    if (again) {
      again = false;
      take();
    }
  }
  news.onopen = () => show("up");
  news.onerror = () => show("down");
  // The first news only says what there is.
  news.onmessage = (event) => event.data === DATA.version || take();
}
