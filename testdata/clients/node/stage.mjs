// What the suites talk to: the program, and the switches of the stage it is on.
import { setTimeout as sleep } from "node:timers/promises";

export const url = process.env.TENURE_URL;
export const key = process.env.TENURE_KEY;
export const base = `${url}/v1`;

async function post(path, body) {
  const answer = await fetch(`${url}/stage/${path}`, { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(await answer.text());
}

export const fault = (kind, more) => post("fault", { kind, ...more });
export const clear = () => post("clear", {});
export const cancelled = async () => (await (await fetch(`${url}/stage/counts`)).json()).Cancelled;

export async function waitUntil(condition, seconds = 5) {
  for (const end = Date.now() + seconds * 1000; !(await condition()); await sleep(20)) {
    if (Date.now() > end) throw new Error("waited in vain");
  }
}

export const lookup = {
  type: "object",
  properties: { name: { type: "string" }, limit: { type: "integer" } },
  required: ["name", "limit"],
  additionalProperties: false,
};
export const tool = {
  type: "function",
  function: { name: "lookup_candidate", description: "Finds a candidate", parameters: lookup, strict: true },
};
export const ask = (content = "Tell me about yourself.") => [{ role: "user", content }];
export const tooLong = "word ".repeat(20000);
