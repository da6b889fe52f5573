// The suite of the AI SDK with its own provider for OpenAI, which asks for
// responses.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, embedMany, generateText, jsonSchema, Output, stepCountIs, streamText, tool as makeTool } from "ai";
import { z } from "zod";
import { base, cancelled, clear, fault, key, lookup, simulated, tooLong, waitUntil } from "./stage.mjs";

const provider = createOpenAI({ baseURL: base, apiKey: key });
const common = { maxRetries: 0, prompt: "Tell me about yourself." };
const stateless = { openai: { store: false } };
const Candidate = z.object({ name: z.string().max(20), years: z.number().int() });
const called = [];
const tools = {
  lookup_candidate: makeTool({
    description: "Finds a candidate",
    inputSchema: jsonSchema(lookup),
    execute: (input) => (called.push(input), "a nurse"),
  }),
};

afterEach(clear);

test("ai, responses: generateText", async () => {
  const answer = await generateText({ ...common, model: provider("recruit/general"), system: "Be brief." });
  assert(answer.text);
  assert.equal(answer.finishReason, "stop");
  assert(answer.usage.totalTokens > 0);
  assert.equal(answer.response.modelId, "recruit/general");
  assert.equal((await generateText({ ...common, model: provider("phi3:mini"), maxOutputTokens: 3 })).finishReason, "length");
});

test("ai, responses: streamText", async () => {
  const same = { ...common, model: provider("phi3:mini"), temperature: 0 };
  const stream = streamText(same);
  let text = "";
  for await (const part of stream.textStream) text += part;
  assert.equal(text, (await generateText(same)).text);
  assert.equal(await stream.finishReason, "stop");
  assert((await stream.usage).totalTokens > 0);
});

for (const way of ["as it comes", "in a stream"]) {
  test(`ai, responses: several steps with tools, ${way}`, simulated, async () => {
    const args = {
      maxRetries: 0, model: provider("mistral"), tools, providerOptions: stateless, stopWhen: stepCountIs(3),
      messages: [{ role: "user", content: "Use the lookup tool." }],
    };
    called.length = 0;
    const answer = way === "in a stream" ? streamText(args) : await generateText(args);
    const steps = await answer.steps;
    assert.equal(steps[0].finishReason, "tool-calls");
    assert.deepEqual(Object.keys(called[0]).sort(), ["limit", "name"]);
    assert(steps.length > 1);
    // The turn after it, with all that was said.
    const messages = [...args.messages, ...(await answer.response).messages, { role: "user", content: "Thank you." }];
    assert((await generateText({ ...args, messages, toolChoice: "none" })).text);
  });
}

test("ai, responses: tool choice required on phi3:mini", async () => {
  const answer = await generateText({ ...common, model: provider("phi3:mini"), tools, toolChoice: "required", providerOptions: stateless });
  assert.deepEqual(answer.toolCalls.map((c) => c.toolName), ["lookup_candidate"]);
});

test("ai, responses: objects by schema", async () => {
  const answer = await generateText({ ...common, model: provider("mistral"), output: Output.object({ schema: Candidate }) });
  Candidate.parse(answer.output);
  const stream = streamText({ ...common, model: provider("mistral"), output: Output.object({ schema: Candidate }) });
  Candidate.parse(await stream.output);
});

test("ai, responses: what is stored is not there", async () => {
  const later = { openai: { previousResponseId: "resp_1" } };
  await assert.rejects(generateText({ ...common, model: provider("phi3:mini"), providerOptions: later }), (e) => e.statusCode === 400);
});

test("ai, responses: embeddings", async () => {
  const { embeddings, usage } = await embedMany({ model: provider.embedding("nomic-embed-text"), values: ["a nurse", "a cook"], maxRetries: 0 });
  assert(embeddings.length === 2 && embeddings[0].length > 8 && usage.tokens > 0);
});

test("ai, responses: errors", async () => {
  const status = (wanted) => (e) => APICallError.isInstance(e) && e.statusCode === wanted && e.message !== "";
  await assert.rejects(generateText({ ...common, model: provider("no-such-model") }), status(404));
  await assert.rejects(generateText({ ...common, model: provider("phi3:mini"), prompt: tooLong }), /maximum context length/);
  const locked = createOpenAI({ baseURL: base, apiKey: "not-the-key" });
  await assert.rejects(generateText({ ...common, model: locked("phi3:mini") }), status(401));
});

test("ai, responses: failure within a stream", simulated, async () => {
  await fault("error-line", { after: 3, times: 1 });
  const stream = streamText({ ...common, model: provider("phi3:mini"), temperature: 0.21, onError() {} });
  const parts = [];
  for await (const part of stream.fullStream) parts.push(part.type);
  assert(parts.includes("error") && parts.includes("text-delta"), parts.join(" "));
});

test("ai, responses: abort cancels", simulated, async () => {
  const before = await cancelled();
  await fault("hang-mid", { after: 2 });
  const abort = new AbortController();
  const stream = streamText({ ...common, model: provider("phi3:mini"), temperature: 0.22, abortSignal: abort.signal, onError() {} });
  setTimeout(() => abort.abort(), 300);
  for await (const part of stream.fullStream) void part;
  await waitUntil(async () => (await cancelled()) === before + 1);
});
