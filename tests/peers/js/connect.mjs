// Functions of the official JavaScript SDK, served by its worker over a connection to the engine.
import { Inngest, NonRetriableError } from "inngest";
import { connect } from "inngest/connect";

const client = new Inngest({ id: process.env.PEER_APP_ID, isDev: !process.env.INNGEST_SIGNING_KEY });
const trigger = (name) => ({ id: name, triggers: [{ event: `${client.id}/${name}` }] });

const steps = client.createFunction(trigger("steps"), async ({ step }) => {
  const one = await step.run("one", () => 1);
  await step.sleep("rest", 50);
  const two = await Promise.all([step.run("a", () => one + 1), step.run("b", () => 3)]);
  return [one, ...two];
});
const fail = client.createFunction(trigger("fail"), () => {
  throw new NonRetriableError("no more");
});
const slow = client.createFunction(trigger("slow"), async ({ event }) => {
  await new Promise((resolve) => setTimeout(resolve, event.data.seconds * 1000));
  return "done";
});

await connect({ apps: [{ client, functions: [steps, fail, slow] }], instanceId: "official" });
