// The page of `edgedb serve`: conversations with the model behind this host, kept in this browser.
// No text of a model or a file becomes markup: every node is made by createElement or is a text
// node, and the server's Content-Security-Policy would refuse anything else.

const $ = (id) => document.getElementById(id);
const touch = matchMedia("(pointer: coarse)").matches; // Enter is a new line there
const { format } = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// crypto.randomUUID is missing where the page does not come over https or from this computer.
const random = (n) => [...crypto.getRandomValues(new Uint32Array(n))];
const newId = () => random(3).map((part) => part.toString(36).padStart(7, "0")).join("");

let lastTime = 0;
const now = () => (lastTime = Math.max(Date.now(), lastTime + 1)); // siblings are in order of time

// ---- Markdown
// Blocks first, by lines, then what stands inside a line. Both are linear in the length of the text.

const MAX_DEPTH = 12; // of lists and quotations inside each other; deeper ones stay text
const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const blank = (line) => line.trim() === "";

const cellsOf = (line) =>
  line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim());

// How each column of a table that begins here is set; null where none begins.
function columnsAt(lines, i) {
  if (!lines[i].includes("|") || !lines[i + 1]?.includes("-")) return null;
  const marks = cellsOf(lines[i + 1]);
  const fits = marks.length === cellsOf(lines[i]).length && marks.every((mark) => /^:?-+:?$/.test(mark));
  return fits ? marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : "")) : null;
}

const begins = (lines, i) =>
  [FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(lines[i])) || columnsAt(lines, i) !== null;

// [{source, build}]: the lines of each block and a function that makes its node.
function blocksOf(lines, depth) {
  const blocks = [];
  for (let i = 0; i < lines.length; ) {
    const first = i;
    const line = lines[i];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    const columns = columnsAt(lines, i);
    const taken = () => lines.slice(first, i);
    let build = null;
    if (blank(line)) {
      i++;
      continue;
    } else if (fence) {
      const [, indent, marks, language] = fence;
      const ends = (text) => text.startsWith(marks) && !text.replaceAll(marks[0], "");
      for (i++; i < lines.length && !ends(lines[i].trim()); i++);
      const inside = lines.slice(first + 1, i++).map((text) => (text.startsWith(indent) ? text.slice(indent.length) : text));
      build = () => codeBlock(inside.join("\n"), language.trim());
    } else if (heading) {
      i++;
      const text = line.trim().slice(heading[1].length).trim().replace(/(^|\s)#+$/, "");
      build = () => inline(el(`h${Math.min(6, heading[1].length + 2)}`), text);
    } else if (RULE.test(line)) {
      i++;
      build = () => el("hr");
    } else if (QUOTE.test(line)) {
      while (i < lines.length && QUOTE.test(lines[i])) i++;
      const inside = taken().map((text) => text.replace(QUOTE, ""));
      build = () => blocksInto(el("blockquote"), inside, depth + 1);
    } else if (ITEM.test(line)) {
      const { items, count, list } = listAt(lines, i);
      i += count;
      build = () => {
        for (const item of items) list.append(blocksInto(el("li"), item, depth + 1));
        return list;
      };
    } else if (columns) {
      for (i += 2; i < lines.length && lines[i].includes("|"); i++);
      const rows = taken();
      build = () => table(rows, columns);
    } else {
      for (i++; i < lines.length && !blank(lines[i]) && !begins(lines, i); i++);
      const text = taken().map((part) => part.trimStart()).join("\n");
      build = () => inline(el("p"), text);
    }
    blocks.push({ source: taken().join("\n"), build });
  }
  return blocks;
}

// Whatever is two characters further in than the first marker belongs to the item above: models
// do not count as CommonMark does.
function listAt(lines, start) {
  const [, margin, marker] = ITEM.exec(lines[start]);
  const numbered = marker.length > 1;
  const items = [];
  let i = start;
  for (; i < lines.length; i++) {
    const line = lines[i];
    const item = ITEM.exec(line);
    const indent = line.search(/\S|$/) - margin.length;
    if (item && indent < 2 && item[2].length > 1 === numbered && !RULE.test(line)) {
      items.push([line.slice(item[0].length)]);
    } else if (blank(line) || indent >= 2 || (!blank(lines[i - 1]) && !begins(lines, i))) {
      items.at(-1).push(line.slice(margin.length + Math.min(Math.max(indent, 0), marker.length + 1)));
    } else break;
  }
  for (; blank(lines[i - 1]); i--) items.at(-1).pop();
  return { items, count: i - start, list: numbered ? el("ol", { start: parseInt(marker) }) : el("ul") };
}

function blocksInto(parent, lines, depth) {
  if (depth > MAX_DEPTH) parent.append(lines.join("\n"));
  else for (const block of blocksOf(lines, depth)) parent.append(block.build());
  return parent;
}

function codeBlock(text, language) {
  const copy = el("button", { className: "quiet", textContent: "Copy", onclick: () => copyText(text, copy) });
  const pre = el("pre", { tabIndex: 0 }, el("code", { textContent: text }));
  return el("div", { className: "block" }, el("div", {}, el("span", { textContent: language }), copy), pre);
}

function table(lines, columns) {
  const row = (line, tag) => {
    const cells = cellsOf(line);
    return el("tr", {}, ...columns.map((side, i) => {
      const cell = inline(el(tag), (cells[i] ?? "").replaceAll("\\|", "|"));
      cell.dataset.align = side;
      return cell;
    }));
  };
  const body = el("tbody");
  for (const line of lines.slice(2)) body.append(row(line, "td"));
  return el("div", { className: "wide", tabIndex: 0 }, el("table", {}, el("thead", {}, row(lines[0], "th")), body));
}

const SPECIAL = /[\\[\n]|!\[|`+|\*+|_+|~+|https?:\/\//g;
const LABEL = /!?\[((?:[^[\]]|\[[^[\]]*\])*)\](?=\()/y;
const DESTINATION = /\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)/y;
const BARE = /https?:\/\/[^\s<>"`*]*[^\s<>"`*.,:;!?'_~\]]/y;
const WORD = /[\p{L}\p{N}]/u;
const ENDS = {
  "*": /(?<=[^\s*])\*(?!\*)/g,
  "**": /(?<=\S)\*\*(?!\*)/g,
  "***": /(?<=[^\s*])\*{3}(?!\*)/g,
  _: /(?<=[^\s_])_(?![\p{L}\p{N}_])/gu,
  __: /(?<=\S)__(?![\p{L}\p{N}_])/gu,
  "~~": /(?<=\S)~~(?!~)/g,
};

function linkTo(address) {
  // Without a base: a relative address means nothing here.
  const safe = URL.canParse(address) && ["http:", "https:", "mailto:"].includes(new URL(address).protocol);
  return safe ? el("a", { href: address, target: "_blank", rel: "noopener noreferrer" }) : null;
}

// Marks are looked for in a copy of the text, equally long, in which code and what stands behind a
// backslash is blotted out.
const blotted = (text) =>
  text.replace(/\\[!-/:-@[-`{-~]|(?<!`)(`+)(?!`)[^]*?(?<!`)\1(?!`)/g, (all, ticks) =>
    ticks ? ticks + "x".repeat(all.length - 2 * ticks.length) + ticks : "\\x");

function inline(parent, text, marks = blotted(text), depth = 0) {
  const line = { text, marks, depth, endless: new Set() };
  const special = new RegExp(SPECIAL);
  let at = 0; // first character that is in no node yet
  for (let found; depth < MAX_DEPTH && (found = special.exec(marks)); ) {
    const [node, end] = nodeAt(line, found.index, found[0]) ?? [];
    if (!node) continue;
    parent.append(text.slice(at, found.index), node);
    at = special.lastIndex = end;
  }
  parent.append(text.slice(at));
  return parent;
}

// What a mark begins, a node or a character, and where that ends; nothing if the mark is text.
function nodeAt({ text, marks, depth, endless }, i, mark) {
  const next = i + mark.length;
  const inside = (node, from, to) => inline(node, text.slice(from, to), marks.slice(from, to), depth + 1);
  if (mark === "\n") return [el("br"), next];
  if (mark === "\\") {
    if (text[next] === "\n") return [el("br"), next + 1];
    return marks[next] === "x" && text[next] !== "x" ? [text[next], next + 1] : null;
  }
  if (mark[0] === "`") {
    let end = next;
    while (marks[end] === "x") end++;
    if (end === next || !marks.startsWith(mark, end)) return null;
    const code = text.slice(next, end).replaceAll("\n", " ");
    return [el("code", { textContent: code.trim() ? code.replace(/^ (.*) $/, "$1") : code }), end + mark.length];
  }
  if (mark.startsWith("http")) {
    BARE.lastIndex = i;
    let address = WORD.test(text[i - 1] ?? "") ? "" : BARE.exec(marks)?.[0] ?? "";
    if (address.endsWith(")") && !address.includes("(")) address = address.slice(0, -1);
    const link = linkTo(address);
    return link && [Object.assign(link, { textContent: address }), i + address.length];
  }
  if (mark.endsWith("[")) {
    // An image becomes a link to it: nothing is fetched from anywhere.
    LABEL.lastIndex = i;
    if (!LABEL.test(marks)) return null;
    const end = (DESTINATION.lastIndex = LABEL.lastIndex);
    const target = DESTINATION.exec(text);
    const link = target && linkTo(target[1]);
    if (!link) return null;
    const after = DESTINATION.lastIndex;
    inside(link, next, end - 1);
    for (const inner of link.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
    return [link, after];
  }
  const ending = ENDS[mark];
  const opens = ending && /\S/.test(text[next] ?? "") && !(mark[0] === "_" && WORD.test(text[i - 1] ?? ""));
  if (!opens || endless.has(mark)) return null;
  ending.lastIndex = next;
  const end = ending.exec(marks)?.index;
  if (!end) {
    endless.add(mark); // nor does it end from any later place: this keeps it linear
    return null;
  }
  const node = el({ 1: "em", 2: mark === "~~" ? "del" : "strong", 3: "strong" }[mark.length]);
  inside(mark.length === 3 ? node.appendChild(el("em")) : node, next, end);
  return [node, end + mark.length];
}

// Shows `text` in `parent`. A block whose source is what it was keeps its nodes, so that a growing
// answer costs only its last block and a selection in the others stays.
export function markdown(parent, text) {
  const blocks = blocksOf(text.split("\n"), 0);
  blocks.forEach(({ source, build }, i) => {
    const old = parent.childNodes[i];
    if (old?.source === source) return;
    const node = Object.assign(build(), { source });
    old ? old.replaceWith(node) : parent.append(node);
  });
  while (parent.childNodes.length > blocks.length) parent.lastChild.remove();
}

// ---- What is kept
// Every message is a record of its own, so that two tabs add to one conversation and lose nothing.

let db = null; // stays null where the browser keeps nothing: then a conversation ends with its page
const tabs = new BroadcastChannel("edgedb");

const done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function openStore() {
  const opening = indexedDB.open("edgedb", 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("conversations", { keyPath: "id" });
    opening.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
  };
  db = await done(opening);
}

async function put(name, ...records) {
  if (!db) return;
  try {
    const store = db.transaction(name, "readwrite").objectStore(name);
    await Promise.all(records.map((record) => done(store.put(record))));
    tabs.postMessage(records[0]?.conversation ?? null);
  } catch (error) {
    notice(`This could not be kept: ${error.message}`);
  }
}

const all = async (name) => (db ? done(db.transaction(name).objectStore(name).getAll()) : []);

const messagesOf = async (id) =>
  db ? done(db.transaction("messages").objectStore("messages").index("conversation").getAll(id)) : [];

function remove(gone, conversation = "") {
  if (!db) return;
  const change = db.transaction(["conversations", "messages"], "readwrite");
  change.objectStore("conversations").delete(conversation);
  for (const message of gone) change.objectStore("messages").delete(message.id);
  tabs.postMessage(null);
}

// ---- The tree of messages
// Conversation: {id, title, at, head, system, schema}; seen is the path from a first message to `head`.
// Message: {id, conversation, parent, role, text, at}, and of an answer {thought; state: writing, done,
// cut or failed; reason; from: length of the text that the last request went on with; fields: of that
// request; system; facts: what it cost}.

let conversations = new Map();
let open = null;
let messages = new Map(); // of the open conversation
const runs = new Map(); // answers being written, of any conversation, by id

const siblings = (parent) =>
  [...messages.values()].filter((m) => m.parent === parent).sort((a, b) => a.at - b.at);

function pathTo(id) {
  const path = [];
  for (let m = messages.get(id); m; m = messages.get(m.parent)) path.push(m);
  return path.reverse();
}

// The end of the newest branch below a message.
function tip(message) {
  for (let next = message; next; next = siblings(message.id).at(-1)) message = next;
  return message.id;
}

// An answer that was being written when its page went away was cut there.
const stateOf = ({ id, state }) => (state === "writing" && !runs.has(id) ? "cut" : state);

function add(parent, role, text, more = {}) {
  const message = { id: newId(), conversation: open.id, parent, role, text, at: now(), ...more };
  messages.set(message.id, message);
  if (!open.title && role === "user") open.title = text.trim().split("\n")[0].slice(0, 80);
  open.at = message.at;
  conversations.set(open.id, open);
  put("messages", message);
  go(message.id);
  return message;
}

function go(head) {
  open.head = head;
  put("conversations", open);
  show();
}

// ---- The server

let model = null; // its row of /v1/models

class Trouble extends Error {}

async function fetchFrom(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (settings.key) headers.Authorization = `Bearer ${settings.key}`;
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw options.signal?.aborted ? error : new Trouble(`No answer from ${location.host}. Is edgedb serve running?`);
  });
  if (response.ok) return response;
  const { status } = response;
  const said = await response.json().then((body) => body.error?.message ?? body.error, () => "");
  const words = {
    401: `The server wants ${settings.key ? "another" : "an"} API key: see the settings.`,
    429: "The server has all it can do.",
    503: "The server is not ready: it loads its model, or is closing down.",
  };
  const trouble = new Trouble(words[status] || said || `The server failed with ${status}.`);
  throw Object.assign(trouble, { status, wait: Number(response.headers.get("Retry-After")) || 3 });
}

// The chunks of a streamed answer. A busy server says when to come back, and is asked again then.
async function* ask(body, run) {
  const { signal } = run.abort;
  const options = { method: "POST", body: JSON.stringify(body), signal };
  let response;
  while (!response) {
    try {
      response = await fetchFrom("v1/chat/completions", options);
    } catch (trouble) {
      if (trouble.status !== 429 && trouble.status !== 503) throw trouble;
      for (let left = trouble.wait; left > 0; left -= 0.2) {
        run.note = `${trouble.message} Asking again in ${Math.ceil(left)} s.`;
        refresh(run.message);
        await new Promise((resolve) => setTimeout(resolve, 200));
        signal.throwIfAborted();
      }
      run.note = "";
    }
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done: ended, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new Trouble("The connection broke.");
    });
    if (ended) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}

// What the settings and the conversation ask for, with a seed that can be given again.
function fieldsNow() {
  const fields = { seed: random(1)[0] >>> 1 };
  for (const name of NUMBERS) if (settings[name]) fields[name] = Number(settings[name]);
  if (open.schema) {
    const schema = JSON.parse(open.schema);
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  }
  return { ...fields, ...(settings.more && JSON.parse(settings.more)) };
}

function bodyOf(answer) {
  const before = pathTo(answer.parent).filter((m) => m.text).map(({ role, text }) => ({ role, content: text }));
  if (answer.system) before.unshift({ role: "system", content: answer.system });
  const continued = answer.text && { continue_final_message: true };
  if (continued) before.push({ role: "assistant", content: answer.text });
  const stream = { stream: true, stream_options: { include_usage: true }, return_progress: true };
  return { model: model?.id, ...answer.fields, messages: before, ...continued, ...stream };
}

// Has `answer` written, from the end of the text that it has.
async function write(answer) {
  const run = { message: answer, abort: new AbortController(), tokens: 0, note: "", spoken: 0 };
  runs.set(answer.id, run);
  Object.assign(answer, { state: "writing", reason: "", from: answer.text.length });
  answer.thought = (answer.text && answer.thought) || "";
  show();
  let ending;
  let saved = 0;
  try {
    for await (const chunk of ask(bodyOf(answer), run)) {
      if (chunk.error) throw new Trouble(chunk.error.message);
      const choice = chunk.choices?.find(({ index }) => !index);
      const { content = "", reasoning_content: thought } = choice?.delta ?? {};
      answer.text += content ?? "";
      answer.thought += thought ?? "";
      if (content || thought) {
        run.first ??= Date.now();
        run.tokens++;
      }
      ending = choice?.finish_reason ?? ending;
      run.progress = chunk.prompt_progress ?? run.progress;
      answer.facts = factsOf(chunk, answer.facts);
      refresh(answer);
      if (Date.now() > saved + 250) {
        saved = Date.now();
        put("messages", answer);
      }
    }
    if (!ending) throw new Trouble("The connection ended before the answer did.");
    Object.assign(answer, ending === "length" ? { state: "cut", reason: "length" } : { state: "done" });
  } catch (error) {
    answer.facts = { prompt: run.progress?.total ?? 0, tokens: run.tokens }; // the server counts none that is cut
    if (run.abort.signal.aborted) Object.assign(answer, { state: "cut", reason: "stopped" });
    else Object.assign(answer, { state: answer.text ? "cut" : "failed", reason: "trouble", trouble: error.message });
    if (error.status === 401) configure("key");
    else if (error.status === 404) hello(); // another model?
  }
  runs.delete(answer.id);
  if (conversations.has(answer.conversation)) await put("messages", answer);
  show();
  views.get(answer.id)?.speak(run, Infinity);
  return answer;
}

function factsOf({ usage, timings }, facts = {}) {
  const found = {
    prompt: usage?.prompt_tokens,
    known: usage?.prompt_tokens_details?.cached_tokens ?? timings?.cache_n,
    tokens: usage?.completion_tokens,
    readMs: timings?.prompt_ms,
    speed: timings?.predicted_per_second,
  };
  for (const name in found) if (!Number.isFinite(found[name])) delete found[name];
  return { ...facts, ...found };
}

const answerTo = (parent, more = {}) =>
  add(parent, "assistant", "", { system: open.system, fields: fieldsNow(), model: model?.id ?? "", ...more });

const copyOf = ({ parent, text, system, fields, model }, more) => answerTo(parent, { text, system, fields, model, ...more });

const stop = () => runs.get(open.head)?.abort.abort();

const actions = {
  again: (answer) => write(answerTo(answer.parent)),
  // A message that others answer stays as it is: the longer one stands beside it.
  resume(answer) {
    const fields = { ...answer.fields, seed: fieldsNow().seed };
    return write(siblings(answer.id).length ? copyOf(answer, { fields }) : Object.assign(answer, { fields }));
  },
  retry: (answer) => (answer.text ? actions.resume(answer) : write(Object.assign(answer, { fields: fieldsNow() }))),
  async replay(answer) {
    const second = await write(copyOf(answer, { text: answer.text.slice(0, answer.from) }));
    if (second.state === answer.state && second.reason === answer.reason) compare(answer, second);
  },
  copy: (message, button) => copyText(message.text, button),
  edit: (message) => views.get(message.id).edit(),
  previous: (message) => step(message, -1),
  next: (message) => step(message, 1),
};

// Same seed, same text: then the second is the first, and one of them is enough.
function compare(first, second) {
  if (second.text !== first.text || second.thought !== first.thought) {
    second.differs = true;
    put("messages", second);
    return show();
  }
  first.repeated = true;
  messages.delete(second.id);
  remove([second]);
  put("messages", first);
  const conversation = conversations.get(first.conversation);
  if (conversation.head === second.id) put("conversations", Object.assign(conversation, { head: first.id }));
  show();
  say("Same seed, same text.");
}

function step(message, by) {
  const versions = siblings(message.parent);
  const other = versions.at((versions.indexOf(message) + by) % versions.length);
  go(tip(other));
  views.get(other.id).part(`[data-act=${by < 0 ? "previous" : "next"}]`).focus();
}

function send(text, parent = open.head) {
  write(answerTo(add(parent, "user", text).id));
  stuck = true;
}

// ---- What is seen

const views = new Map(); // of the messages that were shown since the conversation was opened
const changed = new Set();
let stuck = true;

class View {
  constructor(message) {
    this.message = message;
    this.node = $("message").content.firstElementChild.cloneNode(true);
    this.node.classList.add(message.role);
    this.part = (selector) => this.node.querySelector(selector);
    this.body = this.part(".body");
    this.part("h2").textContent = message.role === "user" ? "You" : message.model || "The model";
    for (const button of this.node.querySelectorAll("[data-act]"))
      button.onclick = () => actions[button.dataset.act](message, button);
    this.update();
  }

  update() {
    const { message } = this;
    const run = runs.get(message.id);
    const state = stateOf(message);
    const answer = message.role === "assistant";
    this.node.classList.toggle("writing", Boolean(run));
    if (answer) this.answer(run);
    else this.body.textContent = message.text;
    const versions = siblings(message.parent);
    this.part(".versions").hidden = versions.length < 2;
    this.part(".versions span").textContent = `${versions.indexOf(message) + 1} of ${versions.length}`;
    const offered = {
      resume: state === "cut" && message.text && !message.fields?.response_format,
      copy: message.text && !run,
      again: answer && !run,
      edit: !run && (message.text || !answer),
      replay: answer && !run && message.fields && message.reason !== "edited" && state !== "failed",
    };
    for (const name in offered) this.part(`[data-act=${name}]`).hidden = !offered[name];
    this.part(".facts").textContent = answer ? factsText(message, run) : "";
    this.part(".trouble").hidden = message.reason !== "trouble";
    this.part(".trouble span").textContent = message.trouble;
  }

  answer(run) {
    const { message } = this;
    this.part(".thinking").hidden = !message.thought;
    markdown(this.part(".thinking .markdown"), message.thought ?? "");
    this.body.classList.add("markdown");
    markdown(this.body, message.fields?.response_format ? "```json\n" + message.text + "\n```" : message.text);
    this.part(".seed").textContent = `Replay seed ${message.fields?.seed}`;
    this.part(".seed").classList.toggle("same", message.repeated ?? false);
    this.part(".progress").hidden = !run || run.tokens > 0;
    const { total, processed, cache } = run?.progress ?? {};
    const known = cache ? ` (${format(cache)} known already)` : "";
    const words = total ? `Reading: ${format(processed)} of ${format(total)} tokens${known}` : "Waiting for the model";
    this.part(".progress span").textContent = run?.note || words;
    const bar = this.part("progress");
    if (total) Object.assign(bar, { max: total, value: processed });
    else bar.removeAttribute("value");
    if (run) this.speak(run, this.body.children.length - 1);
  }

  // A screen reader hears each paragraph once it is finished, never single words.
  speak(run, finished) {
    const blocks = [...this.body.children].slice(0, finished);
    for (const block of blocks.slice(run.spoken)) say(block.innerText);
    run.spoken = Math.max(run.spoken, blocks.length);
  }

  edit() {
    const { message } = this;
    const answer = message.role === "assistant";
    const text = el("textarea", { value: message.text, ariaLabel: "Text of the message" });
    const leave = () => (form.replaceWith(this.body), this.node.classList.remove("edited"), this.node.focus());
    const keep = el("button", { className: "strong", textContent: answer ? "Keep" : "Send" });
    const cancel = el("button", { type: "button", className: "quiet", textContent: "Cancel", onclick: leave });
    const form = el("form", { className: "edit" }, text, keep, cancel);
    form.onsubmit = (event) => {
      event.preventDefault();
      leave();
      if (!text.value.trim()) return;
      if (answer) copyOf(message, { text: text.value, state: "cut", reason: "edited" });
      else send(text.value, message.parent);
    };
    text.oninput = () => grow(text);
    text.onkeydown = (event) => {
      if (event.key === "Escape") leave();
      else if (sends(event)) form.requestSubmit();
      else return;
      event.preventDefault();
      event.stopPropagation();
    };
    this.body.replaceWith(form);
    this.node.classList.add("edited");
    grow(text);
    text.focus();
  }
}

function factsText(message, run) {
  const { tokens, speed, prompt, known = 0, readMs } = message.facts ?? {};
  if (run) return run.tokens > 4 ? `${format((run.tokens - 1) / (Date.now() - run.first) * 1000)} tokens a second` : "";
  const words = [];
  if (message.repeated) words.push("same seed, same text");
  if (message.differs) words.push("same seed, another text");
  if (stateOf(message) === "cut") {
    const why = { length: "cut at the limit of tokens", stopped: "stopped by you", edited: "edited by you", trouble: "cut" };
    words.push(why[message.reason] ?? "cut when the page was closed");
  }
  if (tokens) words.push(`${format(tokens)} tokens` + (speed ? `, ${format(speed)} a second` : ""));
  if (prompt) words.push(`read ${format(prompt - known)} of ${format(prompt)}` + (readMs ? ` in ${format(readMs / 1000)}\u00a0s` : ""));
  return words.join(" · ");
}

function viewOf(message) {
  if (!views.has(message.id)) views.set(message.id, new View(message));
  return views.get(message.id);
}

// Once a frame.
function refresh(message) {
  if (!changed.size) requestAnimationFrame(() => {
    for (const one of changed) views.get(one.id)?.update();
    changed.clear();
    follow();
    gauge();
  });
  changed.add(message);
}

function show() {
  const path = pathTo(open.head);
  $("welcome").hidden = path.length > 0;
  path.forEach((message, i) => {
    const { node } = viewOf(message);
    if ($("path").children[i] !== node) $("path").insertBefore(node, $("path").children[i] ?? null);
    views.get(message.id).update();
  });
  while ($("path").children.length > path.length) $("path").lastChild.remove();
  if (document.activeElement !== $("title")) $("title").value = open.title;
  document.title = open.title ? `${open.title} - edgedb` : "edgedb";
  const running = runs.has(open.head);
  $("stop").hidden = !running;
  $("send").hidden = running;
  if (!touch && !document.activeElement.checkVisibility()) $("text").focus(); // its button is gone
  if (conversations.has(open.id) && location.hash !== `#${open.id}`) history.replaceState(null, "", `#${open.id}`);
  list();
  chosen();
  follow();
  gauge();
}

function follow() {
  if (stuck) $("scroll").scrollTop = $("scroll").scrollHeight;
  $("end").hidden = stuck;
}

// How full the context is, by the last answer that the server counted.
function gauge() {
  const { facts } = pathTo(open.head).findLast((m) => m.facts?.prompt) ?? {};
  const size = model?.context;
  $("context").hidden = !size || !facts;
  if (!size || !facts) return;
  const used = facts.prompt + (facts.tokens ?? 0);
  Object.assign($("context").firstChild, { max: size, value: used });
  $("context").lastChild.textContent = `${format(used)} of ${format(size)} tokens`;
}

function list() {
  const rows = [...conversations.values()].sort((a, b) => b.at - a.at).map((conversation) => {
    const link = el("a", { href: `#${conversation.id}`, textContent: conversation.title || "Without a title" });
    if (conversation === open) link.ariaCurrent = "page";
    const busy = [...runs.values()].some((run) => run.message.conversation === conversation.id);
    const drop = el("button", { className: "icon", textContent: "×", ariaLabel: `Delete ${link.textContent}` });
    drop.onclick = () => discard(conversation);
    return el("li", { className: busy ? "busy" : "" }, link, drop);
  });
  $("list").replaceChildren(...rows);
}

async function discard(conversation) {
  for (const run of runs.values()) if (run.message.conversation === conversation.id) run.abort.abort();
  const gone = await messagesOf(conversation.id);
  remove(gone, conversation.id);
  conversations.delete(conversation.id);
  if (open === conversation) begin();
  else list();
  $("new").focus();
  notice(`“${conversation.title}” is deleted.`, "Undo", async () => {
    conversations.set(conversation.id, conversation);
    await put("conversations", conversation);
    await put("messages", ...gone);
    visit(conversation.id);
  });
}

// A new conversation, kept once something is said in it, is told what the last one was.
function begin() {
  const { system = "", schema = "" } = open ?? {};
  open = { id: newId(), title: "", at: now(), head: null, system, schema };
  messages = new Map();
  enter();
  if (location.hash) history.pushState(null, "", location.pathname);
}

async function visit(id) {
  if (!conversations.has(id)) return begin();
  const found = await messagesOf(id);
  open = conversations.get(id);
  messages = new Map(found.map((m) => [m.id, runs.get(m.id)?.message ?? m]));
  if (!messages.has(open.head)) open.head = messages.size ? tip(siblings(null).at(-1)) : null;
  enter();
}

function enter() {
  views.clear();
  $("path").replaceChildren();
  stuck = true;
  drawer(false);
  show();
  if (!touch) $("text").focus();
}

function say(text) {
  $("spoken").append(el("p", { textContent: text }));
  if ($("spoken").children.length > 20) $("spoken").firstChild.remove();
}

function notice(text, act = "", action = null) {
  const [words, button] = $("notice").children;
  words.textContent = text;
  Object.assign(button, { textContent: act, hidden: !act, onclick: () => (($("notice").hidden = true), action()) });
  $("notice").hidden = false;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => ($("notice").hidden = true), 8000);
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not over https and not from this computer: the old way.
    const area = document.body.appendChild(el("textarea", { value: text, className: "unseen" }));
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function drawer(out) {
  document.body.classList.toggle("listed", out);
  $("menu").ariaExpanded = String(out);
  if (out) $("close").focus();
}

// ---- Settings

const form = $("settings").querySelector("form");
const NUMBERS = [...form.querySelectorAll("[type=number]")].map((field) => field.name);
const LOCAL = ["system", "schema"]; // of the conversation, not of all
const settings = JSON.parse(localStorage.getItem("edgedb") ?? "{}");

const valueOf = (name) => (LOCAL.includes(name) ? open : settings)[name] ?? "";

function configure(name = "system") {
  for (const field of form.querySelectorAll("[name]")) field.value = valueOf(field.name);
  $("settings").showModal();
  for (const area of form.querySelectorAll("textarea")) grow(area);
  form.elements[name].focus();
}

form.onchange = ({ target }) => {
  const { name, value } = target;
  target.setCustomValidity("");
  if ("json" in target.dataset && !isJson(value)) target.setCustomValidity("This is no JSON object.");
  if (!target.reportValidity()) return;
  if (LOCAL.includes(name)) {
    open[name] = value.trim();
    if (conversations.has(open.id)) put("conversations", open);
  } else {
    settings[name] = value;
    localStorage.setItem("edgedb", JSON.stringify(settings));
  }
  document.documentElement.dataset.theme = settings.theme ?? "";
  if (name === "key") hello();
  chosen();
};

// What differs from the server's own ways stands above the field, so that it surprises nobody.
function chosen() {
  const names = [...LOCAL, ...NUMBERS, "more"].filter(valueOf);
  $("chosen").replaceChildren(...names.map((name) => {
    const textContent = form.elements[name].labels[0].firstChild.data + (NUMBERS.includes(name) ? settings[name] : "");
    return el("button", { type: "button", className: "quiet", textContent, onclick: () => configure(name) });
  }));
}

// ---- Export and import

const KIND = "edgedb conversations";
const isText = (most) => (value) => typeof value === "string" && value.length <= most;
const isId = (value) => typeof value === "string" && /^[0-9a-z]{10,40}$/.test(value);
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isJson = (value) => {
  try {
    return value.trim() === "" || isObject(JSON.parse(value));
  } catch {
    return false;
  }
};
const oneOf = (...words) => (value) => words.includes(value);
const orNot = (check) => (value) => value === undefined || check(value);
const SHAPES = {
  conversations: { id: isId, title: isText(200), at: isCount, head: (v) => v === null || isId(v), system: isText(1e6), schema: isJson },
  messages: {
    id: isId, conversation: isId, parent: (v) => v === null || isId(v), role: oneOf("user", "assistant"), text: isText(1e7), at: isCount,
    state: orNot(oneOf("writing", "done", "cut", "failed")), reason: orNot(oneOf("", "length", "stopped", "edited", "trouble")),
    from: orNot(isCount), fields: orNot(isObject), system: orNot(isText(1e6)), thought: orNot(isText(1e7)), model: orNot(isText(1000)),
    facts: orNot((v) => isObject(v) && Object.values(v).every(Number.isFinite)), repeated: orNot(oneOf(true)),
  },
};

// The records of a file, or an Error that says where it is wrong. Only known keys are taken.
export function readExport(text) {
  const file = JSON.parse(text);
  if (!isObject(file) || file.kind !== KIND || file.version !== 1) throw new Error("it was not exported by this page");
  const read = {};
  for (const [kind, shape] of Object.entries(SHAPES)) {
    if (!Array.isArray(file[kind])) throw new Error(`it has no list of ${kind}`);
    read[kind] = file[kind].map((record, i) => {
      const wrong = Object.keys(shape).find((key) => !isObject(record) || !shape[key](record[key]));
      if (wrong) throw new Error(`${kind}, number ${i + 1}: bad ${wrong}`);
      return Object.fromEntries(Object.keys(shape).filter((key) => key in record).map((key) => [key, record[key]]));
    });
  }
  const owners = new Map(read.conversations.map((c) => [c.id, c]));
  const seen = new Map();
  for (const [i, message] of read.messages.entries()) {
    // A parent stands before its children, so there are no circles.
    const parent = message.parent === null ? message : seen.get(message.parent);
    if (!owners.has(message.conversation) || parent?.conversation !== message.conversation || seen.has(message.id))
      throw new Error(`messages, number ${i + 1}: it hangs on nothing`);
    seen.set(message.id, message);
  }
  for (const c of read.conversations) if (seen.get(c.head)?.conversation !== c.id) c.head = null;
  return read;
}

async function exportAll() {
  const messages = (await all("messages")).sort((a, b) => a.at - b.at);
  const file = { kind: KIND, version: 1, conversations: [...conversations.values()], messages };
  const url = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }));
  el("a", { href: url, download: `edgedb-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// Adds what is not here yet and changes nothing that is.
async function importFrom(file) {
  try {
    if (file.size > 64 << 20) throw new Error("it is larger than 64 MiB");
    const read = readExport(await file.text());
    const here = new Set((await all("messages")).map((m) => m.id));
    const added = read.conversations.filter((c) => !conversations.has(c.id));
    for (const c of added) conversations.set(c.id, c);
    await put("conversations", ...added);
    await put("messages", ...read.messages.filter((m) => !here.has(m.id)));
    await visit(added[0]?.id ?? open.id);
    notice(`${added.length} of ${read.conversations.length} conversations are new and were added.`);
  } catch (error) {
    notice(`${file.name} could not be imported: ${error.message}.`);
  }
}

// ---- Keys and buttons

const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch;

const ALT = {
  KeyN: begin,
  KeyA: () => last("assistant", actions.again),
  ArrowUp: () => last("assistant", actions.previous),
  ArrowDown: () => last("assistant", actions.next),
};

function last(role, action) {
  const message = pathTo(open.head).findLast((m) => m.role === role);
  if (message && !runs.has(message.id)) action(message);
}

document.onkeydown = (event) => {
  if ($("settings").open) return;
  if (event.altKey && !event.ctrlKey && ALT[event.code]) ALT[event.code]();
  else if (event.key === "Escape" && document.body.classList.contains("listed")) drawer(false);
  else if (event.key === "Escape") stop();
  else return;
  event.preventDefault();
};

$("text").onkeydown = (event) => {
  if (sends(event)) $("composer").requestSubmit();
  else if (event.key === "ArrowUp" && !event.altKey && !$("text").value) last("user", actions.edit);
  else return;
  event.preventDefault();
};

$("text").oninput = () => {
  grow($("text"));
  sessionStorage.setItem("draft", $("text").value); // a reload keeps it
};

$("composer").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || runs.has(open.head)) return;
  $("text").value = "";
  $("text").oninput();
  send(text);
};

for (const button of document.querySelectorAll(".example")) button.onclick = () => send(button.textContent);
$("stop").onclick = stop;
$("new").onclick = begin;
$("end").onclick = () => ((stuck = true), follow());
$("menu").onclick = () => drawer(true);
$("close").onclick = $("shade").onclick = () => (drawer(false), $("menu").focus());
$("configure").onclick = () => configure();
$("export").onclick = exportAll;
$("import").onclick = () => $("file").click();
$("file").onchange = ({ target }) => importFrom(target.files[0]).then(() => (target.value = ""));
$("title").onchange = () => {
  open.title = $("title").value.trim();
  if (conversations.has(open.id)) put("conversations", open);
  show();
};
$("scroll").onscroll = ({ target }) => {
  stuck = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
  $("end").hidden = stuck;
};
new ResizeObserver(follow).observe($("scroll"));
onpopstate = () => visit(location.hash.slice(1));
// The words of the last quarter of a second.
onpagehide = () => put("messages", ...[...runs.values()].map((run) => run.message));
tabs.onmessage = async ({ data }) => {
  conversations = new Map((await all("conversations")).map((c) => [c.id, c.id === open.id ? open : c]));
  if (data === open.id) {
    for (const m of await messagesOf(open.id)) {
      if (!runs.has(m.id)) messages.set(m.id, Object.assign(messages.get(m.id) ?? m, m));
    }
  }
  show();
};

// ---- Start

async function hello() {
  try {
    const [row] = (await (await fetchFrom("v1/models")).json()).data;
    model = { id: row.id, context: row.meta?.n_ctx };
    $("model").textContent = row.id;
    gauge();
  } catch (trouble) {
    $("model").textContent = trouble.message;
    if (trouble.status === 401) configure("key");
    else setTimeout(hello, 3000);
  }
}

document.documentElement.dataset.theme = settings.theme ?? "";
$("host").textContent = location.host;
try {
  await openStore();
} catch {
  notice("This browser keeps nothing for this page: conversations end with it.");
}
conversations = new Map((await all("conversations")).map((c) => [c.id, c]));
await visit(location.hash.slice(1));
$("text").value = sessionStorage.getItem("draft") ?? "";
grow($("text"));
hello();
