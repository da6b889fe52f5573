// The suite of OpenAI's own package for Node.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ask, base, cancelled, clear, fault, key, long, simulated, tooLong, tool, url, waitUntil } from "./stage.mjs";

const client = new OpenAI({ baseURL: base, apiKey: key, maxRetries: 0 });
const chat = (more) => client.chat.completions.create({ model: "phi3:mini", messages: ask(), ...more });
const Candidate = z.object({ name: z.string().max(20), years: z.number().int(), email: z.string().max(20).nullable() });

async function all(stream) {
  const chunks = [];
  for await (const chunk of await stream) chunks.push(chunk);
  return chunks;
}
const text = (chunks) => chunks.map((c) => c.choices[0]?.delta.content ?? "").join("");

afterEach(clear);

test("openai: models, with and without a slash", async () => {
  const { data } = await client.models.list();
  const ids = data.map((m) => m.id);
  assert(ids.includes("recruit-auto") && ids.includes("recruit/resume_parsing"));
  for (const id of ids) assert.equal((await client.models.retrieve(id)).id, id); // a slash goes as %2F
  assert.equal((await client.get("/models/recruit/resume_parsing")).id, "recruit/resume_parsing");
});

test("openai: chat", async () => {
  const answer = await chat({ model: "recruit/general" });
  assert.equal(answer.model, "recruit/general");
  const [choice] = answer.choices;
  assert.equal(choice.message.role, "assistant");
  assert(choice.message.content);
  assert.equal(choice.message.refusal, null);
  assert.equal(choice.logprobs, null);
  assert.equal(choice.finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert(answer._request_id);
  const slashed = new OpenAI({ baseURL: `${base}/`, apiKey: key });
  assert((await slashed.chat.completions.create({ model: "phi3:mini", messages: ask() })).choices.length);
});

test("openai: stream without usage", async () => {
  const whole = await chat({ temperature: 0, seed: 1 });
  const chunks = await all(chat({ temperature: 0, seed: 1, stream: true }));
  assert.equal(text(chunks), whole.choices[0].message.content);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert(chunks.every((c) => c.choices.length === 1 && !c.usage));
  assert.deepEqual(chunks.map((c) => c.choices[0].finish_reason).filter(Boolean), ["stop"]);
});

test("openai: stream with usage", async () => {
  const chunks = await all(chat({ stream: true, stream_options: { include_usage: true } }));
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert(last.usage.total_tokens > 0);
  assert(chunks.every((c) => c.usage === null));
});

test("openai: stream helper", async () => {
  const runner = client.chat.completions.stream({ model: "phi3:mini", messages: ask() });
  const answer = await runner.finalChatCompletion();
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert(answer.choices[0].message.content);
});

for (const model of ["mistral", "phi3:mini"]) {
  for (const [name, tool_choice] of [["required", "required"], ["named", { type: "function", function: { name: "lookup_candidate" } }]]) {
    test(`openai: tool_choice ${name} on ${model}`, async () => {
      const args = { model, messages: ask("Hello."), tools: [tool], tool_choice };
      const streamed = client.chat.completions.stream(args).finalChatCompletion();
      for (const answer of [await client.chat.completions.create(args), await streamed, await client.chat.completions.parse(args)]) {
        const [choice] = answer.choices;
        assert.equal(choice.finish_reason, "tool_calls");
        assert.equal(choice.message.tool_calls.length, 1);
        assert.equal(choice.message.tool_calls[0].function.name, "lookup_candidate");
        assert.deepEqual(Object.keys(JSON.parse(choice.message.tool_calls[0].function.arguments)).sort(), ["limit", "name"]);
      }
    });
  }
}

test("openai: tool_choice auto and none", simulated, async () => {
  const args = { model: "mistral", messages: ask("Use the lookup tool."), tools: [tool] };
  const called = await chat(args);
  assert.equal(called.choices[0].finish_reason, "tool_calls");
  assert.equal(called.choices[0].message.content, null);
  const plain = await chat({ ...args, tool_choice: "none" });
  assert.equal(plain.choices[0].message.tool_calls, undefined);
  assert(plain.choices[0].message.content);
});

test("openai: tool runner", simulated, async () => {
  let asked;
  const runner = client.chat.completions.runTools({
    model: "mistral",
    messages: ask("Use the lookup tool."),
    tools: [{ type: "function", function: { ...tool.function, parse: JSON.parse, function: (args) => ((asked = args), "Jane Doe") } }],
  });
  assert(await runner.finalContent());
  assert.equal(typeof asked.name, "string");
});

test("openai: parse", async () => {
  const args = { model: "mistral", messages: ask(), response_format: zodResponseFormat(Candidate, "candidate") };
  Candidate.parse((await client.chat.completions.parse(args)).choices[0].message.parsed);
  Candidate.parse((await client.chat.completions.stream(args).finalChatCompletion()).choices[0].message.parsed);
  await assert.rejects(client.chat.completions.parse({ ...args, max_completion_tokens: 2 }), /length/);
});

test("openai: json_object", simulated, async () => {
  const answer = await chat({ messages: ask("Answer in JSON."), response_format: { type: "json_object" } });
  assert.equal(typeof JSON.parse(answer.choices[0].message.content), "object");
});

test("openai: limits, n, logprobs, stop, seed, null", async () => {
  assert.equal((await chat({ max_tokens: 3 })).usage.completion_tokens, 3);
  assert.equal((await chat({ max_completion_tokens: 3 })).choices[0].finish_reason, "length");
  assert.deepEqual((await chat({ n: 2 })).choices.map((c) => c.index), [0, 1]);
  const ended = (await all(chat({ n: 2, stream: true }))).filter((c) => c.choices[0].finish_reason);
  assert.equal(ended.length, 2);
  assert((await chat({ logprobs: true, top_logprobs: 1 })).choices.length);
  const whole = (await chat({ temperature: 0 })).choices[0].message.content;
  const word = whole.split(" ")[4];
  assert.equal((await chat({ temperature: 0, stop: [word] })).choices[0].message.content, whole.slice(0, whole.indexOf(word)));
  const [one, two] = [await chat({ seed: 7 }), await chat({ seed: 7 })];
  assert.equal(one.choices[0].message.content, two.choices[0].message.content);
  assert((await chat({ temperature: null, stop: null, tools: [], stream: null, store: true, metadata: { a: "b" } })).choices.length);
});

const check = async (promise, kind, status, code) =>
  assert.rejects(promise, (e) => {
    assert(e instanceof kind, `${e}`);
    assert.equal(e.status, status);
    if (code) assert.equal(e.code, code);
    assert(e.type && e.requestID);
    return true;
  });

test("openai: errors", async () => {
  await check(chat({ temperature: 9 }), OpenAI.BadRequestError, 400);
  await check(chat({ messages: ask(tooLong) }), OpenAI.BadRequestError, 400, "context_length_exceeded");
  await check(chat({ model: "no-such-model" }), OpenAI.NotFoundError, 404, "model_not_found");
  await check(client.models.retrieve("no/such-model"), OpenAI.NotFoundError, 404, "model_not_found");
  await check(client.moderations.create({ input: "x" }), OpenAI.NotFoundError, 404, "unknown_url");
  await check(chat({ messages: ask("x".repeat(2 << 20)) }), OpenAI.APIError, 413, "request_too_large");
  await check(client.withOptions({ apiKey: "not-the-key" }).models.list(), OpenAI.AuthenticationError, 401, "invalid_api_key");
});

test("openai: busy and failing", simulated, async () => {
  await fault("queue-full", { times: 1 });
  await check(chat({ seed: 31 }), OpenAI.RateLimitError, 429);
  await fault("error-line"); // every time: the program tries once more by itself
  await check(chat({ seed: 32 }), OpenAI.InternalServerError, 502);
});

test("openai: keys in three headers", async () => {
  for (const headers of [{ Authorization: `Bearer ${key}` }, { "api-key": key }, { "x-api-key": key }]) {
    assert.equal((await fetch(`${url}/v1/models`, { headers })).status, 200);
  }
  assert.equal((await fetch(`${url}/v1/models`)).status, 401);
});

test("openai: busy is retried", simulated, async () => {
  assert((await chat({ seed: 30 })).choices.length); // the model is back from the test before: a load would use the fault up
  await fault("queue-full", { times: 1 });
  const began = Date.now();
  assert((await client.chat.completions.create({ model: "phi3:mini", messages: ask(), seed: 33 }, { maxRetries: 2 })).choices.length);
  assert(Date.now() - began > 3000); // as Retry-After asks
});

for (const kind of ["error-line", "cut-mid", "no-done"]) {
  test(`openai: failure within a stream, ${kind}`, simulated, async () => {
    await fault(kind, { after: 3, times: 1 });
    await assert.rejects(all(chat({ stream: true, seed: 34 })), (e) => e instanceof OpenAI.APIError && /^upstream_/.test(e.code));
    await fault(kind, { after: 3, times: 1 });
    await assert.rejects(client.chat.completions.stream({ model: "phi3:mini", messages: ask(), seed: 35 }).done());
  });
}

test("openai: abort cancels", async () => {
  const before = await cancelled();
  for await (const _ of await chat({ stream: true, seed: 36, ...long })) break;
  await waitUntil(async () => (await cancelled()) === before + 1);
  const abort = new AbortController();
  const waiting = client.chat.completions.create({ model: "phi3:mini", messages: ask(), seed: 37, ...long }, { signal: abort.signal });
  setTimeout(() => abort.abort(), 300);
  await assert.rejects(waiting, OpenAI.APIUserAbortError);
  await waitUntil(async () => (await cancelled()) === before + 2);
  assert((await chat()).choices.length);
});

test("openai: comments while loading", simulated, async () => {
  await fault("slow-load", { model: "llama3", delay: 11 });
  const { data, response } = await chat({ model: "llama3", stream: true }).withResponse();
  assert.equal(response.headers.get("tenure-residency"), null); // they came while it loaded
  assert(text(await all(data)));
});
