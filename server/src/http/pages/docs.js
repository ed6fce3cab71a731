
// The API's description as a page: what there is, in which words, and a form to try it.

const MOST_SHOWN = 20000;
const at = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Text in which `this` is code. */
function prose(text = "") {
  const parts = text.split("`").map((part, place) => (place % 2 ? element("code", {}, part) : part));
  return element("span", {}, ...parts);
}

function table(heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const line = (cells) => element("tr", {}, ...cells.map((content) => element("td", {}, content)));
  const made = element("table", { className: "list" }, element("thead", {}, head), element("tbody", {}, ...rows.map(line)));
  return element("div", { className: "scroll" }, made);
}

let api;
const named = (reference) => reference.split("/").pop();
const resolved = (response) => (response.$ref ? api.components.responses[named(response.$ref)] : response);

// --- types

const JOINED = { oneOf: " or ", anyOf: " or ", allOf: " and " };

/** A type in a few words; those with a name lead to their description. */
function type(schema) {
  if (!schema || schema === true) {
    return "anything";
  }
  if (schema.$ref) {
    const name = named(schema.$ref);
    return element("a", { href: `#type-${name}` }, name);
  }
  for (const [key, word] of Object.entries(JOINED)) {
    if (schema[key]) {
      return element("span", {}, ...schema[key].flatMap((part, place) => (place ? [word, type(part)] : [type(part)])));
    }
  }
  if (schema.enum) {
    return element("code", {}, schema.enum.map((value) => JSON.stringify(value)).join(" or "));
  }
  if (schema.items) {
    return element("span", {}, "array of ", type(schema.items));
  }
  if (schema.properties) {
    return element("span", {}, "{", ...Object.entries(schema.properties).flatMap(([name, value], place) =>
      [place ? ", " : "", element("code", {}, name), ": ", type(value)]), "}");
  }
  const kinds = [schema.type ?? "anything"].flat();
  return kinds.join(" or ");
}

function properties(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, value]) =>
    [element("code", {}, name), type(value), required.has(name) ? "always" : "", prose(value.description)]);
}

function describe([name, schema]) {
  const body = element("div", {}, prose(schema.description));
  const parts = [schema, ...(schema.oneOf ?? schema.anyOf ?? schema.allOf ?? [])];
  if (!schema.properties) {
    body.append(element("p", {}, type(schema)));
  }
  for (const part of parts.filter((part) => part.properties)) {
    body.append(table(["field", "type", "", ""], properties(part)));
  }
  return element("details", { id: `type-${name}` }, element("summary", {}, element("code", {}, name)), body);
}

// --- trying

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The request as the form has it. */
function request({ method, path, inputs, body }) {
  let place = path;
  const query = new URLSearchParams();
  const headers = {};
  for (const { parameter, input } of inputs.filter(({ input }) => input.value)) {
    if (parameter.in === "path") {
      place = place.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    } else if (parameter.in === "query") {
      query.append(parameter.name, input.value);
    } else {
      headers[parameter.name] = input.value;
    }
  }
  if (body) {
    headers["Content-Type"] = "application/json";
  }
  const url = new URL(`.${place}${query.size ? `?${query}` : ""}`, document.baseURI).href;
  return { url, method, headers, body: body?.value };
}

function curl({ url, method, headers, body }) {
  const words = [`curl ${method === "GET" ? "" : `-X ${method} `}${shellQuoted(url)}`];
  words.push(...Object.entries(headers).map(([name, value]) => `-H ${shellQuoted(`${name}: ${value}`)}`));
  if (body !== undefined) {
    words.push(`-d ${shellQuoted(body)}`);
  }
  return words.join(" \\\n  ");
}

async function send(asked) {
  const begun = performance.now();
  const response = await fetch(asked.url, asked);
  const text = await response.text();
  const took = Math.round(performance.now() - begun);
  const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 1).replace(/\[\s+(-?[\d.e-]+,?\s+)+\]/g, (list) => list.replace(/\s+/g, " "));
  } catch {
    // Not everything is JSON.
  }
  const more = shown.length > MOST_SHOWN ? `\n… and ${shown.length - MOST_SHOWN} characters more` : "";
  return `${response.status} ${response.statusText} (${took} ms)\n${headers}\n\n${shown.slice(0, MOST_SHOWN)}${more}`;
}

function field(id, { parameter, input }) {
  const label = element("label", { htmlFor: id }, `${parameter.name} (${parameter.in}${parameter.required ? ", required" : ""})`);
  input.id = id;
  return element("div", {}, label, input);
}

function form(id, method, path, operation) {
  const inputs = (operation.parameters ?? []).map((parameter) =>
    ({ parameter, input: element("input", { value: parameter.example ?? "", required: Boolean(parameter.required) }) }));
  const media = operation.requestBody?.content?.["application/json"];
  const examples = media?.examples ?? (media && { example: { value: media.example ?? {} } });
  const made = element("form", {});
  made.append(element("div", { className: "fields" }, ...inputs.map((one, place) => field(`${id}-${place}`, one))));
  let body;
  if (examples) {
    const written = (name) => JSON.stringify(examples[name].value, null, 2);
    const names = Object.keys(examples);
    body = element("textarea", { id: `${id}-body`, rows: 7, spellcheck: false, value: written(names[0]) });
    if (names.length > 1) {
      const select = element("select", { id: `${id}-example` }, ...names.map((name) => element("option", {}, name)));
      select.addEventListener("input", () => { body.value = written(select.value); });
      made.append(element("div", { className: "fields" },
        element("div", {}, element("label", { htmlFor: select.id }, "example"), select)));
    }
    made.append(element("label", { htmlFor: body.id }, "body"), body);
  }
  const shown = element("pre", { tabIndex: 0 });
  const answer = element("pre", { className: "answer", tabIndex: 0, hidden: true, role: "status" });
  const asked = () => request({ method, path, inputs, body });
  const refresh = () => { shown.textContent = curl(asked()); };
  made.append(element("div", { className: "bar" }, element("button", {}, "Send")));
  made.addEventListener("input", refresh);
  made.addEventListener("submit", async (event) => {
    event.preventDefault();
    answer.hidden = false;
    answer.textContent = "Asking …";
    answer.textContent = await send(asked()).catch((error) => `The server cannot be reached: ${error.message}`);
  });
  refresh();
  return element("div", {}, element("h3", {}, "Try it"), made, answer, element("h3", {}, "From a shell"), shown);
}

// --- operations

function answers(operation) {
  const rows = Object.entries(operation.responses).map(([status, either]) => {
    const response = resolved(either);
    const [media] = Object.entries(response.content ?? {});
    const headers = Object.keys(response.headers ?? {}).filter((name) => name !== "X-Request-Id");
    const what = element("div", {}, prose(response.description));
    if (headers.length) {
      what.append(element("div", { className: "faint small" }, `headers: ${headers.join(", ")}`));
    }
    const body = media ? element("div", {}, type(media[1].schema)) : "";
    if (media && media[0] !== "application/json") {
      body.append(element("div", { className: "faint small" }, media[0]));
    }
    return [element("code", {}, status), what, body];
  });
  return table(["status", "when", "body"], rows);
}

function parameters(operation) {
  const rows = operation.parameters.map((parameter) => [
    element("code", {}, parameter.name), parameter.in, type(parameter.schema),
    parameter.required ? "always" : "", prose(parameter.description),
  ]);
  return table(["parameter", "in", "type", "", ""], rows);
}

function show([path, method, operation]) {
  const id = operation.operationId;
  const summary = element("summary", {}, element("span", { className: "method mono" }, method.toUpperCase()), " ",
    element("code", {}, path), " ", prose(operation.summary));
  const made = element("details", { id }, summary);
  // Only what is looked at is laid out.
  made.addEventListener("toggle", () => {
    if (made.children.length > 1) {
      return;
    }
    const body = element("div", {});
    if (operation.description) {
      body.append(element("p", {}, prose(operation.description)));
    }
    if (operation.parameters?.length) {
      body.append(parameters(operation));
    }
    const wanted = operation.requestBody?.content?.["application/json"];
    if (wanted) {
      body.append(element("p", {}, "Body: ", type(wanted.schema)));
    }
    body.append(element("h3", {}, "Answers"), answers(operation), form(`try-${id}`, method.toUpperCase(), path, operation));
    made.append(body);
  });
  return made;
}

/** Opens what the address names. */
function follow() {
  const target = at(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

async function start() {
  const response = await fetch("openapi.json");
  if (!response.ok) {
    throw new Error(`openapi.json: ${response.status}`);
  }
  api = await response.json();
  at("version").textContent = api.info.version;
  at("about").append(prose(api.info.description));
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => [path, method, operation]));
  for (const tag of api.tags) {
    const own = operations.filter(([, , operation]) => operation.tags.includes(tag.name));
    at("operations").append(element("section", {},
      element("h2", {}, tag.name, " ", element("span", { className: "faint small" }, prose(tag.description))),
      ...own.map(show)));
  }
  at("types").append(...Object.entries(api.components.schemas).map(describe));
  at("types").hidden = false;
  addEventListener("hashchange", follow);
  follow();
}

start().catch((error) => {
  at("unreachable").textContent = `The API's description cannot be read: ${error.message}`;
  at("unreachable").hidden = false;
});
