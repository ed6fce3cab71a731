// What OpenAI's client for JavaScript makes of the server, with its defaults; as clients.py does.
import OpenAI, { NotFoundError } from "openai";

let input = "";
for await (const chunk of process.stdin) input += chunk;
const ask = JSON.parse(input);
const client = new OpenAI({ baseURL: `${ask.url}/v1`, apiKey: "none", maxRetries: 0 });

const answer = await client.embeddings.create({ model: ask.model, input: ask.texts });
const one = await client.embeddings.create({ model: ask.model, input: ask.query, encoding_format: "float" });
const ids = [];
for await (const model of client.models.list()) ids.push(model.id);
let raised = null;
try {
    await client.embeddings.create({ model: "nobody", input: "a" });
} catch (error) {
    raised = error instanceof NotFoundError ? "NotFoundError" : String(error);
}
const vectors = answer.data.map((row) => row.embedding);
console.log(JSON.stringify({ vectors, query: one.data[0].embedding, ids, raised }));
