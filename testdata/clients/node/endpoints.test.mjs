// OpenAI's own package for Node, beside chat completions.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { base, cancelled, clear, fault, key, tooLong, waitUntil } from "./stage.mjs";

const client = new OpenAI({ baseURL: base, apiKey: key, maxRetries: 0 });
const embed = (input, more) => client.embeddings.create({ model: "nomic-embed-text", input, ...more });
const complete = (more) => client.completions.create({ model: "phi3:mini", prompt: "Tell me about yourself.", ...more });
const respond = (more) => client.responses.create({ model: "phi3:mini", input: "Tell me about yourself.", ...more });
const lookup = {
  type: "function",
  name: "lookup_candidate",
  parameters: { type: "object", properties: { name: { type: "string", maxLength: 20 } }, required: ["name"], additionalProperties: false },
  strict: true,
};

afterEach(clear);

async function all(stream) {
  const events = [];
  for await (const event of await stream) events.push(event);
  return events;
}

test("openai: embeddings", async () => {
  const coded = await embed(["a nurse", "a cook"]); // the package asks for base64 and decodes it
  const plain = await embed(["a nurse", "a cook"], { encoding_format: "float" });
  for (const i of [0, 1]) {
    assert.equal(coded.data[i].index, i);
    assert(coded.data[i].embedding.length > 8);
    coded.data[i].embedding.forEach((x, j) => assert(Math.abs(x - plain.data[i].embedding[j]) < 1e-6));
  }
  assert.equal(coded.usage.total_tokens, coded.usage.prompt_tokens);
  assert.equal((await embed([[15339, 1917]], { dimensions: 8 })).data[0].embedding.length, 8);
  await assert.rejects(embed(""), (e) => e.status === 400 && e.param === "input");
  await assert.rejects(embed(tooLong), (e) => e.status === 400 && e.code === "context_length_exceeded");
  await assert.rejects(embed("x", { model: "recruit-auto" }), (e) => e.status === 400 && e.param === "model");
});

test("openai: completions", async () => {
  const answer = await complete({ prompt: ["A nurse.", "A cook."], n: 2, echo: true, max_tokens: 8 });
  assert.deepEqual(answer.choices.map((c) => [c.index, c.text.split(".")[0]]), [[0, "A nurse"], [1, "A nurse"], [2, "A cook"], [3, "A cook"]]);
  assert(answer.usage.total_tokens > 0);
  const same = { temperature: 0, seed: 1, max_tokens: 12 };
  const chunks = await all(complete({ ...same, stream: true }));
  assert.equal(chunks.map((c) => c.choices[0].text).join(""), (await complete(same)).choices[0].text);
  assert((await complete({ model: "coder", prompt: "func add(", suffix: "}", max_tokens: 8 })).choices[0].text);
  await assert.rejects(complete({ suffix: "x" }), (e) => e.status === 400 && e.param === "suffix");
  await assert.rejects(complete({ prompt: tooLong }), (e) => e.status === 400 && e.code === "context_length_exceeded");
});

test("openai: responses", async () => {
  const answer = await respond({ model: "recruit/general", instructions: "Be brief.", max_output_tokens: 400 });
  assert.equal(answer.model, "recruit/general");
  assert(answer.output_text);
  assert.equal(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens);
  const cut = await respond({ max_output_tokens: 3 });
  assert.deepEqual([cut.status, cut.incomplete_details.reason], ["incomplete", "max_output_tokens"]);
  await assert.rejects(respond({ previous_response_id: "resp_1" }), (e) => e.status === 400 && e.code === "previous_response_not_found");
  await assert.rejects(respond({ input: [{ type: "item_reference", id: "msg_1" }] }), (e) => e.status === 400 && /store: false/.test(e.message));
  await assert.rejects(client.responses.retrieve(answer.id), (e) => e.status === 404);
});

test("openai: responses in a stream", async () => {
  const stream = client.responses.stream({ model: "phi3:mini", input: "Tell me about yourself." });
  let text = "";
  let next = 0;
  for await (const event of stream) {
    assert.equal(event.sequence_number, next++);
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  const final = await stream.finalResponse();
  assert.equal(final.output_text, text);
  assert(text && final.usage.total_tokens > 0);
});

test("openai: responses with tools and schemas", async () => {
  const input = [{ role: "user", content: "Look up Jane." }];
  const more = { tools: [lookup], max_output_tokens: 300 };
  const called = await respond({ input, ...more, tool_choice: { type: "function", name: "lookup_candidate" } });
  const call = called.output.find((item) => item.type === "function_call");
  assert("name" in JSON.parse(call.arguments));
  input.push(...called.output, { type: "function_call_output", call_id: call.call_id, output: "a nurse" });
  assert((await respond({ input, ...more, tool_choice: "none" })).output_text);
  const events = await all(respond({ input: "Look up Jane.", ...more, tool_choice: "required", stream: true }));
  const done = events.find((e) => e.type === "response.function_call_arguments.done");
  assert("name" in JSON.parse(done.arguments));
  const Candidate = z.object({ years: z.number().int().min(0).max(60) });
  const parsed = await client.responses.parse({ model: "phi3:mini", input: "Parse.", text: { format: zodTextFormat(Candidate, "candidate") }, max_output_tokens: 300 });
  assert(Number.isInteger(parsed.output_parsed.years));
});

test("openai: responses and completions fail within a stream", async (t) => {
  if (process.env.TENURE_BACKEND === "real") return t.skip("the real Ollama does not fail on command");
  for (const ask of [respond, complete]) {
    await fault("error-line", { After: 2, Times: 1 });
    await assert.rejects(all(ask({ stream: true })), OpenAI.APIError);
  }
  await fault("hang-mid", { After: 2, Times: 1 });
  const before = await cancelled();
  for await (const event of await respond({ stream: true })) if (event.type === "response.output_text.delta") break;
  await waitUntil(async () => (await cancelled()) === before + 1);
});
