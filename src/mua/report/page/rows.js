/* The conversations: a light row for each, and their bodies when they are needed.

   Invariant: `body` is the only way to a conversation's messages. A page that is a file inflates the block that
   holds it; a page that is served live (`DATA.live`) asks its server. */

let ROWS = [];
const rowOf = new Map(); // by key: "SOURCE/OFFSET", what a link says
let PROMPTS = [];
const NONE = [];

/** Fills ROWS from the index, which is by column; its texts are numbers into lists. */
function readIndex({ n, words, columns, prompts }) {
  PROMPTS = prompts || [];
  rowOf.clear();
  ROWS = Array.from({ length: n }, (_, i) => {
    const text = (name) => words[name][columns[name][i]] ?? "";
    const source = columns.source[i], offset = columns.offset[i];
    const broken = columns.broken[i] < 0 ? null : words.broken[columns.broken[i]];
    const row = {
      n: i, source, offset, key: `${DATA.sources[source].key}/${offset}`,
      task: text("task"), kind: text("kind"), termination: text("termination"), user: text("user"), persona: text("persona"), domain: text("domain"), first: text("first"),
      tools: words.tools[columns.tools[i]] || NONE, broken,
      sample: columns.sample[i], step: columns.step[i], reward: columns.reward[i], length: columns.length[i], turns: columns.turns[i], calls: columns.calls[i], errors: columns.errors[i], tokens: columns.tokens[i],
      traced: Boolean(columns.traced[i]),
      block: columns.block ? columns.block[i] : -1, place: columns.block ? columns.place[i] : -1, tblock: columns.tblock ? columns.tblock[i] : -1, tplace: columns.tblock ? columns.tplace[i] : -1,
    };
    rowOf.set(row.key, row);
    return row;
  });
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}
/** The JSON in a compressed block of the page. */
async function inflate(id) {
  const stream = new Blob([bytesOf(byId(id).textContent)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}
const blocks = new Map(); // the last few that were used
function block(id) {
  const found = blocks.get(id) || inflate(id);
  blocks.delete(id);
  blocks.set(id, found);
  if (blocks.size > 16) blocks.delete(blocks.keys().next().value);
  return found;
}

async function fromServer(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.status === 404 ? "it is not in the run any more" : `the server answered ${answer.status}`);
  return answer.json();
}

/** A conversation: messages, verdicts, changes. Rejects with the reason when it cannot be had. */
async function body(row) {
  if (DATA.live) return fromServer(`conversation/${DATA.sources[row.source].id}/${row.offset}`);
  const found = (await block(`b${row.block}`))[row.place];
  return found.prompt === undefined ? found : { ...found, system: PROMPTS[found.prompt] };
}

/** The exact tokens of a conversation: { segments, pieces }, or null where its file has none. */
async function tokensOf(row, talk) {
  if (talk.trace) return talk.trace;
  if (row.tblock < 0) return null;
  const [list, pieces] = await Promise.all([block(`t${row.tblock}`), block("pieces")]);
  return { segments: list[row.tplace], pieces };
}

// What a row is called.
const solved = (row) => row.reward !== null && Math.abs(row.reward - 1) <= 1e-6;
const outcome = (row) => (row.reward === null ? "unscored" : solved(row) ? "good" : "bad");
const OUTCOMES = { good: ["\u2713", "Solved"], bad: ["\u2717", "Failed"], unscored: ["\u2013", "Not scored"] };
const sourceOf = (row) => DATA.sources[row.source];
const evalOf = (row) => DATA.evals[sourceOf(row).eval ?? -1];
const modelOf = (row) => (evalOf(row) ? evalOf(row).model : "rl");
const whereOf = (row) => [row.step >= 0 ? `step ${row.step}` : "", row.sample ? `sample ${row.sample}` : ""].filter(Boolean).join(" · ");
/** What a row is told from the other conversations of its task by. */
const variantOf = (row) => [sourceOf(row).label, whereOf(row)].filter(Boolean).join(" · ");
