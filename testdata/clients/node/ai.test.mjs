// The suite of the AI SDK with its OpenAI-compatible provider.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, jsonSchema, Output, streamObject, streamText, tool as makeTool } from "ai";
import { z } from "zod";
import { base, cancelled, clear, fault, key, lookup, simulated, tooLong, waitUntil } from "./stage.mjs";

const provider = createOpenAICompatible({ name: "tenure", baseURL: base, apiKey: key, includeUsage: true, supportsStructuredOutputs: true });
const loose = createOpenAICompatible({ name: "tenure", baseURL: base, apiKey: key });
const common = { maxRetries: 0, prompt: "Tell me about yourself." };
const Candidate = z.object({ name: z.string().max(20), years: z.number().int() });
const tools = { lookup_candidate: makeTool({ description: "Finds a candidate", inputSchema: jsonSchema(lookup) }) };

afterEach(clear);

test("ai: generateText", async () => {
  const answer = await generateText({ ...common, model: provider("recruit/general") });
  assert(answer.text);
  assert.equal(answer.finishReason, "stop");
  assert(answer.usage.totalTokens > 0);
  const cut = await generateText({ ...common, model: provider("phi3:mini"), maxOutputTokens: 3 });
  assert.equal(cut.finishReason, "length");
});

for (const [name, from] of [["with", provider], ["without", loose]]) {
  test(`ai: streamText ${name} usage`, async () => {
    const stream = streamText({ ...common, model: from("phi3:mini") });
    let text = "";
    for await (const part of stream.textStream) text += part;
    assert(text);
    assert.equal(await stream.finishReason, "stop");
    assert.equal((await stream.usage).totalTokens > 0, name === "with");
  });
}

for (const model of ["mistral", "phi3:mini"]) {
  for (const toolChoice of ["required", { type: "tool", toolName: "lookup_candidate" }]) {
    test(`ai: tool choice ${toolChoice.type ?? toolChoice} on ${model}`, async () => {
      const args = { ...common, model: provider(model), tools, toolChoice };
      const answer = await generateText(args);
      const stream = streamText(args);
      for (const calls of [answer.toolCalls, await stream.toolCalls]) {
        assert.deepEqual(calls.map((c) => c.toolName), ["lookup_candidate"]);
        assert.deepEqual(Object.keys(calls[0].input).sort(), ["limit", "name"]);
      }
      assert.equal(answer.finishReason, "tool-calls");
      assert.equal(await stream.finishReason, "tool-calls");
    });
  }
}

test("ai: tool choice auto and none", simulated, async () => {
  const args = { ...common, prompt: "Use the lookup tool.", model: provider("mistral"), tools };
  assert.equal((await generateText(args)).toolCalls.length, 1);
  const plain = await generateText({ ...args, toolChoice: "none" });
  assert.equal(plain.toolCalls.length, 0);
  assert(plain.text);
});

for (const [name, from] of [["by schema", provider], ["by json_object", loose]]) {
  const where = from === loose ? simulated : {}; // without a schema, the test models' JSON has no end
  test(`ai: objects ${name}`, where, async () => {
    const shape = name === "by schema" ? Candidate : z.looseObject({});
    const args = { ...common, prompt: "Answer in JSON.", model: from("mistral"), schema: shape };
    shape.parse((await generateObject(args)).object);
    const stream = streamObject(args);
    let last;
    for await (const part of stream.partialObjectStream) last = part;
    assert.deepEqual(shape.parse(last), await stream.object);
    const { schema, ...rest } = args;
    shape.parse((await generateText({ ...rest, output: Output.object({ schema }) })).output);
  });
}

const status = (wanted) => (e) => APICallError.isInstance(e) && e.statusCode === wanted && e.message !== "";

test("ai: errors", async () => {
  await assert.rejects(generateText({ ...common, model: provider("no-such-model") }), status(404));
  await assert.rejects(generateText({ ...common, model: provider("phi3:mini"), temperature: 9 }), status(400));
  await assert.rejects(generateText({ ...common, model: provider("phi3:mini"), prompt: tooLong }), /maximum context length/);
  const locked = createOpenAICompatible({ name: "tenure", baseURL: base, apiKey: "not-the-key" });
  await assert.rejects(generateText({ ...common, model: locked("phi3:mini") }), status(401));
});

test("ai: busy", simulated, async () => {
  await fault("queue-full", { times: 1 });
  await assert.rejects(generateText({ ...common, model: provider("phi3:mini"), seed: 51 }), (e) => status(429)(e) && e.isRetryable);
});

test("ai: failure within a stream", simulated, async () => {
  for (const kind of ["error-line", "cut-mid"]) {
    await fault(kind, { after: 3, times: 1 });
    const stream = streamText({ ...common, model: provider("phi3:mini"), seed: 52, onError() {} });
    const parts = [];
    for await (const part of stream.fullStream) parts.push(part.type);
    assert(parts.includes("error") && parts.includes("text-delta"), parts.join(" "));
  }
});

test("ai: abort cancels", simulated, async () => {
  const before = await cancelled();
  await fault("hang-mid", { after: 2 });
  const abort = new AbortController();
  const stream = streamText({ ...common, model: provider("phi3:mini"), seed: 53, abortSignal: abort.signal, onError() {} });
  setTimeout(() => abort.abort(), 300);
  const parts = [];
  for await (const part of stream.fullStream) parts.push(part.type);
  assert(parts.includes("abort"), parts.join(" "));
  await waitUntil(async () => (await cancelled()) === before + 1);
});
