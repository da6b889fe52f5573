// The suite of LlamaIndex's package for OpenAI.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { OpenAI, OpenAIEmbedding } from "@llamaindex/openai";
import { ask, base, clear, fault, key, lookup, simulated, tooLong } from "./stage.mjs";

const llm = (model = "phi3:mini", more = {}) => new OpenAI({ model, apiKey: key, baseURL: base, maxRetries: 0, ...more });
const embedder = (model = "nomic-embed-text") => new OpenAIEmbedding({ model, apiKey: key, baseURL: base, maxRetries: 0 });

async function all(stream) {
  const parts = [];
  for await (const part of await stream) parts.push(part);
  return parts;
}

afterEach(clear);

test("llamaindex: chat", async () => {
  const answer = await llm("recruit/general").chat({ messages: [{ role: "system", content: "Be brief." }, ...ask()] });
  assert(answer.message.content);
  assert.equal(answer.raw.model, "recruit/general");
  const cut = await llm("phi3:mini", { maxTokens: 3 }).chat({ messages: ask() });
  assert.equal(cut.raw.choices[0].finish_reason, "length");
});

test("llamaindex: stream", async () => {
  const same = llm("phi3:mini", { temperature: 0 });
  const parts = await all(same.chat({ messages: ask(), stream: true }));
  assert(parts.length > 2);
  assert.equal(parts.map((p) => p.delta).join(""), (await same.chat({ messages: ask() })).message.content);
});

test("llamaindex: complete", async () => {
  assert((await llm().complete({ prompt: "Hello." })).text);
});

test("llamaindex: tools", simulated, async () => {
  const tools = [{ metadata: { name: "lookup_candidate", description: "Finds a candidate", parameters: lookup }, call: () => "a nurse" }];
  const messages = ask("Use the lookup tool.");
  const answer = await llm("mistral").chat({ messages, tools });
  const [call] = answer.message.options.toolCall;
  assert.equal(call.name, "lookup_candidate");
  const streamed = (await all(llm("mistral").chat({ messages, tools, stream: true }))).flatMap((p) => p.options?.toolCall ?? []);
  assert.equal(streamed.at(-1).name, "lookup_candidate");
  const result = { role: "user", content: "a nurse", options: { toolResult: { id: call.id, result: "a nurse", isError: false } } };
  assert((await llm("mistral").chat({ messages: [...messages, answer.message, result] })).message.content);
});

test("llamaindex: embeddings", async () => {
  const vectors = await embedder().getTextEmbeddings(["a nurse", "a cook"]);
  assert(vectors.length === 2 && vectors[0].length > 8);
  assert.notDeepEqual(vectors[0], vectors[1]);
  const alone = await embedder().getTextEmbedding("a cook");
  alone.forEach((x, i) => assert(Math.abs(x - vectors[1][i]) < 1e-6));
  await assert.rejects(embedder("phi3:mini").getTextEmbedding("a nurse"), (e) => e.status === 400);
});

test("llamaindex: errors", async () => {
  await assert.rejects(llm("no-such-model").chat({ messages: ask() }), (e) => e.status === 404);
  await assert.rejects(llm().chat({ messages: ask(tooLong) }), /maximum context length/);
});

test("llamaindex: failure within a stream", simulated, async () => {
  await fault("error-line", { after: 3, times: 1 });
  await assert.rejects(all(llm("phi3:mini", { additionalChatOptions: { seed: 81 } }).chat({ messages: ask(), stream: true })));
});
