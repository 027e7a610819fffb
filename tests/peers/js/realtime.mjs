// Subscribes to a channel with the official client, publishes to it, and prints what arrives as a line of JSON.

import { Inngest } from "inngest";
import { channel } from "inngest/realtime";

const client = new Inngest({ id: "realtime", isDev: process.env.PEER_MODE !== "cloud" });
const orders = channel({ name: process.env.PEER_CHANNEL, topics: { status: {}, other: {} } });
const stream = await client.realtime.subscribe({ channel: orders, topics: ["status"] });
const reader = stream.getReader();

await client.realtime.publish(orders.other, { not: "asked for" });
await client.realtime.publish(orders.status, { step: 1 });
await client.realtime.publish(orders.status, "plain text");

const found = [];
while (found.length < 2) {
  const { value } = await reader.read();
  found.push({ kind: value.kind, channel: value.channel, topic: value.topic, data: value.data });
}
console.log(JSON.stringify(found));
stream.close();
process.exit(0);
