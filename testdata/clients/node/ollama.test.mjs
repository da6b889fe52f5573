// The suite of Ollama's own package for Node.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { Ollama } from "ollama";
import { ask, cancelled, clear, fault, key, simulated, tool, tooLong, url, waitUntil } from "./stage.mjs";

const open = (secret = key) => new Ollama({ host: url, headers: { Authorization: `Bearer ${secret}` } });
const client = open();
const chat = (more) => client.chat({ model: "phi3:mini", messages: ask(), ...more });

async function all(stream) {
  const parts = [];
  for await (const part of await stream) parts.push(part);
  return parts;
}

afterEach(clear);

test("ollama: chat", async () => {
  const answer = await chat({ model: "recruit/general" });
  assert.equal(answer.model, "recruit/general");
  assert(answer.message.content);
  assert.deepEqual([answer.done, answer.done_reason], [true, "stop"]);
  assert(answer.eval_count > 0 && answer.prompt_eval_count > 0);
  assert.equal((await chat({ options: { num_predict: 3 } })).done_reason, "length");
});

test("ollama: streams say what the whole answer does", async () => {
  const options = { temperature: 0, seed: 1 };
  const parts = await all(chat({ stream: true, options }));
  assert.equal(parts.map((p) => p.message.content).join(""), (await chat({ options })).message.content);
  assert(parts.length > 2 && parts.at(-1).done);
  const same = { model: "phi3:mini", prompt: "Hello.", system: "Be brief.", options };
  const generated = await all(client.generate({ ...same, stream: true }));
  assert.equal(generated.map((p) => p.response).join(""), (await client.generate(same)).response);
});

test("ollama: format", async () => {
  const format = { type: "object", properties: { years: { type: "integer", minimum: 0, maximum: 60 } }, required: ["years"], additionalProperties: false };
  const answer = await chat({ format, options: { num_predict: 300 } });
  assert(Number.isInteger(JSON.parse(answer.message.content).years));
});

test("ollama: tools", simulated, async () => {
  const messages = ask("Use the lookup tool.");
  const answer = await chat({ model: "mistral", messages, tools: [tool] });
  const [call] = answer.message.tool_calls;
  assert.deepEqual([call.function.name, Object.keys(call.function.arguments).sort()], ["lookup_candidate", ["limit", "name"]]);
  const result = { role: "tool", tool_name: "lookup_candidate", content: "a nurse" };
  assert((await chat({ model: "mistral", messages: [...messages, answer.message, result] })).message.content);
});

test("ollama: lists", async () => {
  const names = (await client.list()).models.map((m) => m.name);
  for (const wanted of ["recruit-auto", "recruit/resume_parsing", "phi3:mini"]) assert(names.includes(wanted), wanted);
  const shown = await client.show({ model: "recruit/report_generation" });
  assert(shown.details.family && shown.capabilities.includes("completion"));
  await chat({ options: { num_predict: 1 } });
  assert((await client.ps()).models.some((m) => m.model === "phi3:mini"));
});

test("ollama: errors", async () => {
  const refused = (status, says) => (e) => e.status_code === status && says.test(e.message);
  await assert.rejects(chat({ model: "no-such-model" }), refused(404, /no-such-model/));
  await assert.rejects(all(chat({ model: "no-such-model", stream: true })), refused(404, /no-such-model/));
  await assert.rejects(chat({ messages: ask(tooLong) }), refused(400, /context/));
  await assert.rejects(client.pull({ model: "mistral" }), refused(403, /server itself/));
  await assert.rejects(client.delete({ model: "mistral" }), refused(403, /server itself/));
  await assert.rejects(open("not-the-key").list(), refused(401, /key/));
});

test("ollama: failure within a stream", simulated, async () => {
  for (const kind of ["error-line", "cut-mid"]) {
    await fault(kind, { after: 3, times: 1 });
    await assert.rejects(all(chat({ stream: true, options: { seed: 71 } })));
  }
});

test("ollama: abort cancels", simulated, async () => {
  const before = await cancelled();
  await fault("hang-mid", { after: 2 });
  const stream = await chat({ stream: true, options: { seed: 72 } });
  setTimeout(() => stream.abort(), 300);
  await assert.rejects(all(stream));
  await waitUntil(async () => (await cancelled()) === before + 1);
});

test("ollama: embed", async () => {
  const { embeddings } = await client.embed({ model: "nomic-embed-text", input: ["a nurse", "a cook"] });
  assert.notDeepEqual(embeddings[0], embeddings[1]);
  const old = await client.embeddings({ model: "nomic-embed-text", prompt: "a cook" });
  assert.equal(old.embedding.length, embeddings[1].length);
  await assert.rejects(client.embed({ model: "phi3:mini", input: "a nurse" }), (e) => e.status_code === 400);
});
