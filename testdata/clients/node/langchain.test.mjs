// The suite of LangChain's package for OpenAI.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { base, cancelled, clear, fault, key, simulated, tooLong, tool, waitUntil } from "./stage.mjs";

const llm = (model = "phi3:mini", more = {}) =>
  new ChatOpenAI({ model, apiKey: key, maxRetries: 0, configuration: { baseURL: base }, ...more });
const Candidate = z.object({ name: z.string().max(20), years: z.number().int() });

async function joined(stream) {
  let whole;
  for await (const chunk of await stream) whole = whole ? whole.concat(chunk) : chunk;
  return whole;
}

afterEach(clear);

test("langchain: invoke", async () => {
  const answer = await llm().invoke([new SystemMessage("Be brief."), new HumanMessage("Hello.")]);
  assert(answer.content);
  assert.equal(answer.response_metadata.finish_reason, "stop");
  assert(answer.usage_metadata.total_tokens > 0);
  const cut = await llm("phi3:mini", { maxTokens: 3 }).invoke("Hello.");
  assert.equal(cut.usage_metadata.output_tokens, 3);
});

test("langchain: stream counts usage once", async () => {
  const whole = await joined(llm("phi3:mini", { temperature: 0 }).stream("Hello."));
  const answer = await llm("phi3:mini", { temperature: 0 }).invoke("Hello.");
  assert.equal(whole.content, answer.content);
  assert.deepEqual(whole.usage_metadata.total_tokens, answer.usage_metadata.total_tokens);
});

for (const model of ["mistral", "phi3:mini"]) {
  for (const method of ["jsonSchema", "functionCalling", "jsonMode"]) {
    const where = method === "jsonMode" ? simulated : {}; // without a schema, the test models' JSON has no end
    test(`langchain: structured output by ${method} on ${model}`, where, async () => {
      const shape = method === "jsonMode" ? z.looseObject({}) : Candidate;
      const bound = llm(model).withStructuredOutput(shape, { name: "candidate", method });
      shape.parse(await bound.invoke("Answer in JSON."));
      let last;
      for await (const part of await bound.stream("Answer in JSON.")) last = part;
      shape.parse(last);
    });
  }
}

test("langchain: tools", simulated, async () => {
  const bound = llm("mistral").bindTools([tool]);
  const question = new HumanMessage("Use the lookup tool.");
  const answer = await bound.invoke([question]);
  assert.equal(answer.tool_calls.length, 1);
  assert.deepEqual(answer.invalid_tool_calls, []);
  const result = new ToolMessage({ content: "Jane Doe", tool_call_id: answer.tool_calls[0].id });
  assert((await bound.invoke([question, answer, result])).content);
});

for (const choice of ["any", "lookup_candidate"]) {
  test(`langchain: tool_choice ${choice} in a stream`, async () => {
    const whole = await joined(llm().bindTools([tool], { tool_choice: choice }).stream("Hello."));
    assert.deepEqual(whole.tool_calls.map((c) => c.name), ["lookup_candidate"]);
    assert.equal(whole.invalid_tool_calls?.length ?? 0, 0);
    assert(whole.usage_metadata.total_tokens > 0);
  });
}

test("langchain: errors", async () => {
  await assert.rejects(llm("no-such-model").invoke("Hello."), (e) => e.status === 404 && e.code === "model_not_found");
  await assert.rejects(llm().invoke(tooLong), /maximum context length/);
  await assert.rejects(llm("phi3:mini", { temperature: 9 }).invoke("Hello."), (e) => e.status === 400);
  await assert.rejects(llm("phi3:mini", { apiKey: "not-the-key" }).invoke("Hello."), (e) => e.status === 401);
});

test("langchain: bad requests are not repeated", async () => {
  const began = Date.now();
  await assert.rejects(llm("phi3:mini", { maxRetries: 6, temperature: 9 }).invoke("Hello."));
  assert(Date.now() - began < 1000);
});

test("langchain: busy is retried as Retry-After asks", simulated, async () => {
  await fault("queue-full", { times: 1 });
  assert((await llm("phi3:mini", { maxRetries: 6, modelKwargs: { seed: 41 } }).invoke("Hello.")).content);
});

test("langchain: failure within a stream", simulated, async () => {
  for (const kind of ["error-line", "cut-mid"]) {
    await fault(kind, { after: 3, times: 1 });
    await assert.rejects(joined(llm("phi3:mini", { modelKwargs: { seed: 42 } }).stream("Hello.")));
  }
});

test("langchain: abort cancels", simulated, async () => {
  const before = await cancelled();
  await fault("hang-mid", { after: 2 });
  const abort = new AbortController();
  const stream = await llm("phi3:mini", { modelKwargs: { seed: 43 } }).stream("Hello.", { signal: abort.signal });
  setTimeout(() => abort.abort(), 300);
  await assert.rejects(joined(stream));
  await waitUntil(async () => (await cancelled()) === before + 1);
});

test("langchain: embeddings", async () => {
  const embedder = new OpenAIEmbeddings({ model: "nomic-embed-text", apiKey: key, maxRetries: 0, configuration: { baseURL: base } });
  const [nurse, cook] = await embedder.embedDocuments(["a nurse", "a cook"]);
  assert(nurse.length > 8);
  assert.notDeepEqual(nurse, cook);
  (await embedder.embedQuery("a nurse")).forEach((x, i) => assert(Math.abs(x - nurse[i]) < 1e-6));
});
