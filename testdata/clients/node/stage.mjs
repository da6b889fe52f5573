// What the suites talk to: the program, and the switches of the stage it is on.
import { setTimeout as sleep } from "node:timers/promises";

const real = process.env.TENURE_BACKEND === "real";
// Options of a test that needs an Ollama that fails on command, or that says
// what the test wants it to.
export const simulated = { skip: real && "the test models and their Ollama do as they like" };

export const url = process.env.TENURE_URL;
export const key = process.env.TENURE_KEY;
export const base = `${url}/v1`;

async function post(path, body) {
  const answer = await fetch(`${url}/stage/${path}`, { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(await answer.text());
}

export const fault = (kind, more) => post("fault", { kind, ...more });
export const clear = async () => real || (await post("clear", {}));
export const cancelled = async () => (await fetch(`${url}/stage/cancelled`)).json();

export async function waitUntil(condition, seconds = 5) {
  for (const end = Date.now() + seconds * 1000; !(await condition()); await sleep(20)) {
    if (Date.now() > end) throw new Error("waited in vain");
  }
}

export const lookup = {
  type: "object",
  properties: { name: { type: "string", maxLength: 20 }, limit: { type: "integer" } },
  required: ["name", "limit"],
  additionalProperties: false,
};
export const tool = {
  type: "function",
  function: { name: "lookup_candidate", description: "Finds a candidate", parameters: lookup, strict: true },
};
// Asks for an answer that takes seconds.
const texts = { type: "array", minItems: 60, maxItems: 60, items: { type: "string", minLength: 60, maxLength: 80 } };
export const long = { response_format: { type: "json_schema", json_schema: { name: "texts", schema: texts } }, max_completion_tokens: 3000 };
export const ask = (content = "Tell me about yourself.") => [{ role: "user", content }];
export const tooLong = "word ".repeat(20000);
