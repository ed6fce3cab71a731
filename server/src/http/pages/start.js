
// What is served, and how near texts are to one another. Everything comes from this server.

const MOST_TEXTS = 50;
const at = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function show(target, text) {
  target.textContent = text;
  target.hidden = !text;
}

// --- models

let ready = new Map();
let next;

function row(model) {
  const name = element("th", { scope: "row" }, model.name);
  const state = element("td", {}, element("span", { className: `state ${model.state}` }, model.state));
  if (model.state !== "ready") {
    return element("tr", {}, name, state, element("td", { colSpan: 4 }, model.reason));
  }
  name.append(element("div", { className: "faint small" }, model.source));
  if (model.kind !== "embedding") {
    const about = element("td", { colSpan: 4 }, `${model.kind}, ${model.max_tokens} tokens: `);
    about.append(element("span", { className: "faint" }, `scores ${model.labels.join(", ")}`));
    return element("tr", {}, name, state, about);
  }
  const shorter = model.allowed_dimensions.filter((length) => length !== model.dimensions);
  const dimensions = element("td", {}, String(model.dimensions));
  if (shorter.length) {
    dimensions.append(element("div", { className: "faint small" }, `or ${shorter.join(", ")}`));
  }
  return element("tr", {}, name, state, dimensions,
    element("td", {}, `${model.max_tokens} tokens`),
    element("td", {}, model.prompts.join(", ") || element("span", { className: "faint" }, "none")),
    element("td", {}, element("code", {}, model.space)));
}

/** Keeps what was chosen where it can still be; touches nothing where nothing is new. */
function fill(select, options) {
  const wanted = JSON.stringify(options);
  if (select.dataset.options === wanted) {
    return;
  }
  const chosen = select.value;
  select.dataset.options = wanted;
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) {
    select.value = chosen;
  }
}

function choices() {
  const names = [...ready.keys()];
  fill(at("model"), names.length ? names.map((name) => [name, name]) : [["", "none is ready yet"]]);
  const model = ready.get(at("model").value);
  const prompts = model?.prompts ?? [];
  const unsaid = model?.default_prompt ? `as nothing is said (${model.default_prompt})` : "none";
  fill(at("prompt"), [["", unsaid], ...prompts.map((name) => [name, name])]);
  at("prompts").hidden = prompts.length === 0;
  at("compare").disabled = !model;
  curl();
}

async function models() {
  clearTimeout(next);
  let pause = 2000;
  try {
    const response = await fetch("models");
    if (!response.ok) {
      throw new Error(await problem(response));
    }
    const listed = (await response.json()).models;
    at("models").tBodies[0].replaceChildren(...listed.map(row));
    const embeds = (model) => model.state === "ready" && model.kind === "embedding";
    ready = new Map(listed.filter(embeds).map((model) => [model.name, model]));
    choices();
    show(at("unreachable"), "");
    if (listed.every((model) => model.state === "ready")) {
      pause = 30000;
    }
  } catch (error) {
    show(at("unreachable"), reason(error));
  }
  // Another round may have ended meanwhile.
  clearTimeout(next);
  next = setTimeout(models, pause);
}

// --- errors

/** What the server says is wrong. */
async function problem(response) {
  const body = await response.json().catch(() => null);
  const said = body?.error?.message ?? response.statusText;
  const later = response.headers.get("retry-after");
  const id = response.headers.get("x-request-id");
  return `${response.status}: ${said}${later ? ` (try again in ${later} s)` : ""}${id ? ` [request ${id}]` : ""}`;
}

const reason = (error) => (error instanceof TypeError ? "The server cannot be reached." : error.message);

// --- comparing

const texts = () => at("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);

function question() {
  const body = { model: at("model").value, texts: texts() };
  if (at("prompt").value) {
    body.prompt_name = at("prompt").value;
  }
  return body;
}

function curl() {
  at("copied").textContent = "";
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const url = new URL("embeddings", document.baseURI).href;
  at("curl").textContent =
    `curl ${quoted(url)} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(question()))}`;
}

function cosine(a, b) {
  let [dot, ofA, ofB] = [0, 0, 0];
  a.forEach((value, place) => {
    dot += value * b[place];
    ofA += value * value;
    ofB += b[place] * b[place];
  });
  return dot / Math.sqrt(ofA * ofB);
}

function cell(value) {
  const made = element("td", { title: String(value), className: value < 0 ? "below" : "" }, value.toFixed(2));
  // Not as an attribute: the page's policy forbids styles there.
  made.style.setProperty("--heat", Math.min(1, Math.abs(value)));
  return made;
}

function heatMap(lines, answer) {
  const short = new Set(answer.truncated);
  const head = element("tr", {}, element("td"), ...lines.map((_, place) => element("th", { scope: "col" }, place + 1)));
  const rows = lines.map((line, place) => {
    const name = `${place + 1}. ${line}`;
    const title = element("th", { scope: "row" }, element("span", { title: line }, name));
    if (short.has(place)) {
      title.append(element("div", { className: "small failed" }, "longer than the model takes: its end was left away"));
    }
    const values = answer.embeddings.map((other) => cell(cosine(answer.embeddings[place], other)));
    return element("tr", {}, title, ...values);
  });
  const tokens = answer.tokens.reduce((sum, count) => sum + count, 0);
  const about = `Cosines of ${lines.length} vectors of ${answer.dimensions} numbers, from ${tokens} tokens`;
  const space = element("div", {}, "space ", element("code", {}, answer.space));
  return element("table", { className: "heat" }, element("caption", {}, about, space),
    element("thead", {}, head), element("tbody", {}, ...rows));
}

let asked;

async function compare() {
  asked?.abort();
  const mine = asked = new AbortController();
  const body = question();
  show(at("error"), "");
  if (body.texts.length < 2 || body.texts.length > MOST_TEXTS) {
    show(at("error"), `Write between 2 and ${MOST_TEXTS} lines.`);
    return;
  }
  at("status").textContent = "Asking …";
  const begun = performance.now();
  try {
    const response = await fetch("embeddings", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: mine.signal,
    });
    if (!response.ok) {
      throw new Error(await problem(response));
    }
    const answer = await response.json();
    at("result").replaceChildren(heatMap(body.texts, answer));
    at("result").hidden = false;
    at("status").textContent = `Answered in ${Math.round(performance.now() - begun)} ms`;
  } catch (error) {
    // The next question has taken over.
    if (asked === mine) {
      at("status").textContent = "";
      at("result").hidden = true;
      show(at("error"), reason(error));
      models();
    }
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  compare();
});
at("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    at("form").requestSubmit();
  }
});
at("form").addEventListener("input", choices);
// Browsers have a clipboard only on pages that nobody can have changed on their way.
if (navigator.clipboard) {
  at("copy").hidden = false;
  at("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(at("curl").textContent);
    at("copied").textContent = "Copied";
  });
}
models();
