// An app of the official JavaScript SDK: one function for each thing that the SDK can do.
// PEER_CHECKPOINTING is "on" (the SDK's default), "off", or "buffered".

import { encryptionMiddleware } from "@inngest/middleware-encryption";
import { anthropic, cron, Inngest, Middleware, NonRetriableError, openai, referenceFunction } from "inngest";
import { RetryAfterError, StepError } from "inngest";
import { experiment } from "inngest";
import { createDefer } from "inngest/experimental";
import { createServer } from "inngest/node";

const id = process.env.PEER_APP_ID;
const checkpointing = { on: true, off: false, buffered: { bufferedSteps: 3 } }[process.env.PEER_CHECKPOINTING ?? "on"];

const client = new Inngest({ id, isDev: Boolean(process.env.INNGEST_DEV), checkpointing });
const functions = [];
const attempts = new Map();

function add(name, handler, options = {}) {
  const made = client.createFunction({ id: name, triggers: [{ event: `${id}/${name}` }], ...options }, handler);
  functions.push(made);
  return made;
}

// Whether this is the first time that the run comes here.
function isFirst(runId) {
  attempts.set(runId, (attempts.get(runId) ?? 0) + 1);
  return attempts.get(runId) === 1;
}

function raise(error) {
  throw error;
}

add("run", async ({ step }) => {
  const first = await step.run("load", () => ({ n: 7, at: new Date(0) }));
  const again = await step.run({ id: "load", name: "Load it again" }, (n, more) => n + more, first.n, 1);
  return { first, again, nothing: await step.run("nothing", () => {}) };
});

add("sleep", async ({ step }) => {
  await step.sleep("nap", "1s");
  await step.sleep("milliseconds", 1000);
  await step.sleepUntil("until", new Date(Date.now() + 1000));
  await step.sleepUntil("past", new Date(0));
  return "rested";
});

add("wait", async ({ step }) => {
  const found = await step.waitForEvent("wait", { event: `${id}/answer`, match: "data.id", timeout: "1m" });
  return found.data;
});

add("wait-timeout", ({ step }) => step.waitForEvent("wait", { event: `${id}/never`, timeout: "1s" }));

add("signal", ({ step }) =>
  step.waitForSignal("signal", { signal: `${id}-go`, timeout: "1m", onConflict: "replace" }),
);
add("send-signal", async ({ step }) => {
  await step.sendSignal("send", { signal: `${id}-go`, data: { n: 1 } });
  return "sent";
});

const child = add("child", ({ event }) => ({ id: event.data.id }));
const failingChild = add("failing-child", () => raise(new TypeError("the child failed")), { retries: 0 });

add("invoke", async ({ step }) => {
  const typed = await step.invoke("typed", { function: child, data: { id: 3 }, timeout: "1m" });
  const reference = referenceFunction({ functionId: "child" });
  const byId = await step.invoke("by-id", { function: reference, data: { id: 4 } });
  try {
    await step.invoke("failing", { function: failingChild, data: {} });
  } catch (error) {
    return { typed, byId, error: error.message };
  }
});

add("send", async ({ step }) => {
  const { ids } = await step.sendEvent("send", [
    { name: `${id}/received`, data: { n: 0 } },
    { name: `${id}/received`, data: { n: 1 } },
  ]);
  return ids.length;
});
add("received", ({ event }) => event.data);

add("parallel", ({ step }) =>
  Promise.all([
    step.run("one", () => 1),
    step.sleep("nap", 1000),
    step.invoke("call", { function: child, data: { id: 5 } }),
    step.run("two", () => 2),
  ]),
);

async function branch(step, ...ids) {
  const found = [];
  for (const stepId of ids) found.push(await step.run(stepId, () => stepId));
  return found;
}

add("branches", async ({ step }) => {
  const found = await Promise.all([branch(step, "l1", "l2", "l3"), branch(step, "r1", "r2")]);
  return [...found, await step.run("after", () => "after")];
});

add("race", async ({ step }) => {
  const winner = await Promise.race([step.run("quick", () => "quick"), step.sleep("nap", "30s").then(() => "slow")]);
  return [winner, await step.run("after", () => "after")];
});

add("group-race", async ({ step, group }) => {
  const race = () => Promise.race([branch(step, "a1", "a2"), step.sleep("nap", "20s")]);
  const found = await group.parallel({ mode: "race" }, race);
  return [...found, await step.run("after", () => "after")];
});

add("unoptimised", ({ step }) => Promise.all([branch(step, "l1", "l2"), branch(step, "r1", "r2")]), {
  optimizeParallelism: false,
});

add("settled", async ({ step }) => {
  const bad = step.run("bad", () => raise(new NonRetriableError("bad branch")));
  const found = await Promise.allSettled([step.run("good", () => "good"), bad]);
  return found.map(({ value, reason }) => value ?? reason.message);
});

add("experiment", async ({ step, group }) => {
  const variants = {
    a: () => step.run("variant-a", () => "from a"),
    b: () => step.run("variant-b", () => "from b"),
  };
  return (await group.experiment("which", { variants, select: experiment.fixed("b") })).result;
});

add("fetch", async ({ event, step }) => {
  const answer = await step.fetch(`${event.data.provider}/path`, {
    method: "POST",
    headers: { "x-test": "1" },
    body: JSON.stringify({ n: 1 }),
  });
  return { status: answer.status, body: await answer.json() };
});

add("infer", async ({ event, step }) => {
  const model = openai({ model: "small", apiKey: "sk-peer-secret", baseUrl: event.data.provider });
  const answer = await step.ai.infer("ask", { model, body: { messages: [{ role: "user", content: "hi" }] } });
  return answer.choices[0];
});

add("infer-anthropic", async ({ event, step }) => {
  const defaultParameters = { max_tokens: 10 };
  const model = anthropic({ model: "small", apiKey: "sk-peer-secret", baseUrl: event.data.provider, defaultParameters });
  const answer = await step.ai.infer("ask", { model, body: { messages: [{ role: "user", content: "hi" }] } });
  return answer.choices[0];
});

add("wrap", ({ step }) => step.ai.wrap("model", async (prompt) => `answer to ${prompt}`, "a question"));

add("retry", ({ attempt }) => (attempt === 0 ? raise(new TypeError("the first attempt fails")) : attempt));

add("step-retry", ({ step, runId }) =>
  step.run("flaky", () => (isFirst(runId) ? raise(new TypeError("the first attempt fails")) : "second")),
);

add(
  "step-fail",
  async ({ step }) => {
    try {
      await step.run("bad", () => raise(new TypeError("bad step")));
    } catch (error) {
      const isStepError = error instanceof StepError;
      return { isStepError, name: error.name, message: error.message, cause: error.cause?.message ?? null };
    }
  },
  { retries: 0 },
);

add("non-retriable", () => raise(new NonRetriableError("no more", { cause: new TypeError("the cause") })));
add("step-non-retriable", ({ step }) => step.run("bad", () => raise(new NonRetriableError("no more"))));
add("retry-after", ({ attempt }) => (attempt === 0 ? raise(new RetryAfterError("soon", "1s")) : attempt));
add("step-retry-after", ({ step, runId }) =>
  step.run("flaky", () => (isFirst(runId) ? raise(new RetryAfterError("soon", 1000)) : "second")),
);

add("guarded", () => raise(new TypeError("guarded failed")), {
  retries: 0,
  onFailure: async ({ event, error, step }) => ({
    message: await step.run("message", () => error.message),
    event: event.data.event.name,
  }),
});

add("triggers", ({ event }) => event.name, {
  triggers: [
    { event: `${id}/triggers` },
    { event: `${id}/triggers-b`, if: "event.data.id > 0" },
    cron("0 0 1 1 *"),
  ],
});

add("many", async ({ step }) => {
  let sum = 0;
  for (let n = 0; n < 20; n++) sum += await step.run(`step ${n}`, () => n);
  return sum;
});

// How often the function was called for one run of five steps.
const calls = new Map();
add("calls", async ({ step, runId }) => {
  calls.set(runId, (calls.get(runId) ?? 0) + 1);
  for (let n = 0; n < 5; n++) await step.run(`step ${n}`, () => n);
  return calls.get(runId);
});

add("large", async ({ step }) => {
  let size = 0;
  for (let n = 0; n < 3; n++) size += (await step.run("part", () => "x".repeat(1_500_000))).length;
  return size;
});

// Uses what middleware can change: input, and the outputs of steps and of the function.
class Wrapping extends Middleware.BaseMiddleware {
  id = "wrapping";

  transformFunctionInput(args) {
    return { ...args, ctx: { ...args.ctx, added: true } };
  }

  async wrapStepHandler({ next }) {
    return { step: await next() };
  }

  async wrapFunctionHandler({ next }) {
    return { function: await next() };
  }
}

add("middleware", async ({ added, step }) => [added, await step.run("a", () => 1)], { middleware: [Wrapping] });

add(
  "encrypted",
  async ({ step }) => {
    const found = await step.run("secret", () => "plain text of a step");
    if (found !== "plain text of a step") throw new NonRetriableError("the step's output was not decrypted");
    return found;
  },
  { middleware: [encryptionMiddleware({ key: "a key of the app's own" })] },
);

// Deferred functions run once the function has ended; one of these is taken back before.
const later = createDefer(client, { id: "later" }, async ({ event, step }) => {
  await step.sendEvent("notify", { name: `${id}/deferred-ran`, data: { n: event.data.n } });
});
functions.push(later);
add("deferring", async ({ defer, step }) => {
  defer("kept", { function: later, data: { n: 1 } });
  const dropped = defer("dropped", { function: later, data: { n: 2 } });
  await step.run("between", () => {});
  dropped.abort();
  await step.run("after", () => {});
  defer("last", { function: later, data: { n: 3 } });
  return "deferred";
});

createServer({ client, functions }).listen(Number(process.env.PORT), "127.0.0.1");
