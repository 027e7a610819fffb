// An app whose functions exchange encrypted data with those of others; see apps/encryption_app.py.

import { encryptionMiddleware } from "@inngest/middleware-encryption";
import { Inngest, referenceFunction } from "inngest";
import { createServer } from "inngest/node";

const id = process.env.PEER_APP_ID;
const client = new Inngest({ id, isDev: true, middleware: [encryptionMiddleware({ key: process.env.PEER_KEY })] });

const reply = client.createFunction({ id: "reply", triggers: [{ event: `${id}/reply` }] }, async ({ event }) => ({
  reply: event.data.encrypted,
}));

const ask = client.createFunction({ id: "ask", triggers: [{ event: `${id}/ask` }] }, async ({ event, step }) => {
  const other = event.data.other;
  const data = { encrypted: await step.run("secret", () => event.data.encrypted), plain: 1 };
  await step.sendEvent("notify", { name: `${other}/reply`, data });
  return step.invoke("ask", { function: referenceFunction({ appId: other, functionId: "reply" }), data });
});

createServer({ client, functions: [reply, ask] }).listen(Number(process.env.PORT), "127.0.0.1");
