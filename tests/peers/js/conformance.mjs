// The app of tests/conformance in JavaScript. The functions, and what each must do, stand in the README there.
// There is no function "nested": this SDK only warns of a step inside a step.

import { cron, eventType, Inngest, NonRetriableError, openai, RetryAfterError, StepError } from "inngest";
import { createServer } from "inngest/node";

const client = new Inngest({ id: "conformance", isDev: Boolean(process.env.INNGEST_DEV) });
const functions = [];

function add(id, handler, options = {}) {
  const made = client.createFunction({ id, triggers: [eventType(`conformance/${id}`)], ...options }, handler);
  functions.push(made);
  return made;
}

const plain = add("plain", ({ event, events, attempt, runId }) => ({
  data: event.data,
  attempt,
  run_id: runId,
  events: events.length,
}));

add("sequence", async ({ step }) => {
  const a = await step.run("a", () => 1);
  const b = await step.run("b", () => a + 1);
  return { a, b };
});

add("repeat", async ({ step }) => {
  const found = [];
  for (let n = 0; n < 3; n++) found.push(await step.run("same", () => n));
  return found;
});

add("sleep", async ({ step }) => {
  await step.sleep("nap", "1h");
  return "awake";
});

add("sleep-until", async ({ step }) => {
  await step.sleepUntil("until", new Date("2100-01-01T00:00:00Z"));
  return "awake";
});

add("wait", async ({ step }) => {
  const found = await step.waitForEvent("wait", {
    event: "conformance/answer",
    if: "event.data.id == async.data.id",
    timeout: "1h",
  });
  return found && { name: found.name, data: found.data };
});

add("invoke", ({ step }) => step.invoke("call", { function: plain, data: { n: 1 }, timeout: "1m" }));

function raise(error) {
  throw error;
}

add("fail", () => raise(new TypeError("boom")));
add("fail-for-good", () => raise(new NonRetriableError("no more")));
add("retry-after", () => raise(new RetryAfterError("later", "1h")));

add("step-fail", async ({ step }) => {
  try {
    return await step.run("bad", () => raise(new TypeError("bad step")));
  } catch (error) {
    if (error instanceof StepError) return { name: error.name, message: error.message };
    throw error;
  }
});

add("step-fail-for-good", ({ step }) => step.run("bad", () => raise(new NonRetriableError("bad for good"))));
add("step-retry-after", ({ step }) => step.run("bad", () => raise(new RetryAfterError("later", "1h"))));

async function steps(step, ...ids) {
  const found = [];
  for (const id of ids) found.push(await step.run(id, () => id));
  return found;
}

add("parallel", ({ step }) => Promise.all([steps(step, "left"), steps(step, "right")]));

add("race", ({ step, group }) =>
  group.parallel({ mode: "race" }, () => Promise.all([steps(step, "l1", "l2"), steps(step, "r1", "r2")])),
);

add("mixed", ({ step }) => Promise.all([steps(step, "left"), step.sleep("nap", "1h")]));

add("send", async ({ step }) => {
  const { ids } = await step.sendEvent("send", { name: "conformance/sent", data: { n: 1 } });
  return ids;
});

add("infer", ({ step }) =>
  step.ai.infer("ask", {
    model: openai({ model: "small", apiKey: "sk-conformance", baseUrl: "http://provider.test/v1" }),
    body: { messages: [{ role: "user", content: "hi" }] },
  }),
);

add("big", async ({ event, step }) => ({
  size: event.data.text.length,
  step: await step.run("a", () => "ran"),
}));

add("guarded", () => raise(new TypeError("guarded failed")), {
  retries: 0,
  onFailure: ({ event, error }) => ({ error: error.message, event: event.data.event.name }),
});

add("configured", () => "configured", {
  name: "Configured",
  retries: 2,
  triggers: [{ event: "conformance/configured", if: "event.data.ok == true" }, cron("0 0 1 1 *")],
  cancelOn: [{ event: "conformance/cancel", if: "event.data.id == async.data.id", timeout: "1h" }],
  concurrency: [{ limit: 2, key: "event.data.user", scope: "fn" }],
  idempotency: "event.data.id",
  priority: { run: "event.data.vip ? 60 : 0" },
  throttle: { limit: 5, period: "1m", burst: 2, key: "event.data.user" },
  timeouts: { start: "10s", finish: "5m" },
});

add("limited", () => "limited", {
  debounce: { period: "5s", timeout: "1m", key: "event.data.user" },
  singleton: { mode: "skip", key: "event.data.user" },
});

add("batched", ({ events }) => events.length, {
  batchEvents: { maxSize: 10, timeout: "30s", key: "event.data.user" },
});

add("rated", () => "rated", { rateLimit: { limit: 3, period: "1h", key: "event.data.user" } });

add("signal", ({ step }) =>
  step.waitForSignal("signal", { signal: "conformance-signal", timeout: "1h", onConflict: "replace" }),
);

add("fetch", async ({ step }) => {
  const answer = await step.fetch("http://host.test/path", {
    method: "POST",
    headers: { "x-test": "1" },
    body: JSON.stringify({ n: 1 }),
  });
  return { status: answer.status, json: await answer.json() };
});

createServer({ client, functions }).listen(Number(process.env.PORT), "127.0.0.1");
