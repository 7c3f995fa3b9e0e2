'use strict';
// STOMP as Node programs speak it, with stompit. HOST and PORT say where the broker is.

const assert = require('node:assert');
const { after, test } = require('node:test');
const stompit = require('stompit');

const HOST = process.env.HOST;
const PORT = Number(process.env.PORT);
const clients = [];
let lastQueue = 0;

function queue() {
  lastQueue += 1;
  return `/queue/stompit.${process.pid}.${lastQueue}`;
}

function connect(headers = {}) {
  return new Promise((resolve, reject) => {
    const options = { host: HOST, port: PORT, connectHeaders: { host: HOST, 'heart-beat': '0,0', ...headers } };
    stompit.connect(options, (error, client) => {
      if (error) return reject(error);
      clients.push(client);
      resolve(client);
    });
  });
}

// A test that failed leaves its connections open, and they would keep this process alive.
after(() => clients.forEach((client) => client.destroy()));

function disconnect(client) {
  return new Promise((resolve, reject) => client.disconnect((error) => (error ? reject(error) : resolve())));
}

/** Sends and waits for the receipt. */
function send(client, headers, body) {
  return new Promise((resolve, reject) => {
    const frame = client.send({ persistent: 'true', ...headers }, { onReceipt: resolve, onError: reject });
    frame.end(body);
  });
}

function read(message) {
  return new Promise((resolve, reject) => {
    const parts = [];
    message.on('data', (part) => parts.push(part));
    message.on('end', () => resolve(Buffer.concat(parts)));
    message.on('error', reject);
  });
}

/** A subscription as a queue of messages to await. */
function subscribe(client, headers) {
  const ready = [];
  const waiting = [];
  const subscription = client.subscribe(headers, async (error, message) => {
    const found = error ? { error } : { message, body: await read(message) };
    const next = waiting.shift();
    next ? next(found) : ready.push(found);
  });
  return {
    subscription,
    async next() {
      const found = ready.shift() || (await new Promise((resolve) => waiting.push(resolve)));
      if (found.error) throw found.error;
      return found;
    },
    /** Nothing may come for a while. */
    async silence(ms = 300) {
      await new Promise((resolve) => setTimeout(resolve, ms));
      assert.strictEqual(ready.length, 0, `unexpected ${ready[0] && ready[0].body}`);
    },
  };
}

function answer(client, how, message) {
  return new Promise((resolve, reject) => client[how](message, {}, { onReceipt: resolve, onError: reject }));
}

const limited = { timeout: 30_000 };

test('speaks 1.2 and says who it is', limited, async () => {
  const client = await connect();
  assert.strictEqual(client.headers.version, '1.2');
  assert.ok(client.headers.session);
  await disconnect(client);
});

test('messages go round with their headers', limited, async () => {
  const client = await connect();
  const destination = queue();
  await send(client, { destination, 'correlation-id': 'c:1', color: 'bl\\ue\n' }, 'hello ü');
  const { message, body } = await subscribe(client, { destination, ack: 'auto' }).next();
  assert.strictEqual(body.toString(), 'hello ü');
  assert.strictEqual(message.headers['correlation-id'], 'c:1');
  assert.strictEqual(message.headers.color, 'bl\\ue\n');
  await disconnect(client);
});

test('binary bodies with a length', limited, async () => {
  const client = await connect();
  const destination = queue();
  const body = Buffer.from(Array.from({ length: 100_000 }, (_, at) => (at * 31) % 256));
  await send(client, { destination, 'content-length': body.length }, body);
  const got = await subscribe(client, { destination, ack: 'auto' }).next();
  assert.ok(got.body.equals(body));
  await disconnect(client);
});

test('what is not acknowledged comes again', limited, async () => {
  const destination = queue();
  const first = await connect();
  for (const body of ['m0', 'm1', 'm2']) await send(first, { destination }, body);
  const consumer = subscribe(first, { destination, ack: 'client-individual' });
  const got = [await consumer.next(), await consumer.next(), await consumer.next()];
  await answer(first, 'ack', got[1].message);
  first.destroy();
  const second = await connect();
  const again = subscribe(second, { destination, ack: 'client-individual' });
  for (const expected of ['m0', 'm2']) {
    const { message, body } = await again.next();
    assert.strictEqual(body.toString(), expected);
    assert.strictEqual(message.headers.redelivered, 'true');
    await answer(second, 'ack', message);
  }
  await again.silence();
  await disconnect(second);
});

test('client mode acknowledges everything before', limited, async () => {
  const destination = queue();
  const first = await connect();
  for (const body of ['m0', 'm1', 'm2', 'm3']) await send(first, { destination }, body);
  const consumer = subscribe(first, { destination, ack: 'client' });
  const got = [await consumer.next(), await consumer.next(), await consumer.next(), await consumer.next()];
  await answer(first, 'ack', got[2].message);
  await disconnect(first);
  const second = await connect();
  const again = subscribe(second, { destination, ack: 'auto' });
  assert.strictEqual((await again.next()).body.toString(), 'm3');
  await again.silence();
  await disconnect(second);
});

test('a refused message is not delivered again', limited, async () => {
  const client = await connect();
  const destination = queue();
  await send(client, { destination }, 'bad');
  const consumer = subscribe(client, { destination, ack: 'client-individual' });
  await answer(client, 'nack', (await consumer.next()).message);
  consumer.subscription.unsubscribe();
  const again = subscribe(client, { destination, ack: 'auto' });
  await again.silence();
  await disconnect(client);
});

test('transactions commit and abort', limited, async () => {
  const client = await connect();
  const destination = queue();
  const consumer = subscribe(client, { destination, ack: 'auto' });
  const aborted = client.begin();
  aborted.send({ destination, persistent: 'true' }).end('rolled back');
  await new Promise((resolve, reject) => aborted.abort({ onReceipt: resolve, onError: reject }));
  const committed = client.begin();
  committed.send({ destination, persistent: 'true' }).end('one');
  committed.send({ destination, persistent: 'true' }).end('two');
  await consumer.silence();
  await new Promise((resolve, reject) => committed.commit({ onReceipt: resolve, onError: reject }));
  assert.strictEqual((await consumer.next()).body.toString(), 'one');
  assert.strictEqual((await consumer.next()).body.toString(), 'two');
  await consumer.silence();
  await disconnect(client);
});

test('topics reach every subscriber', limited, async () => {
  const destination = queue().replace('/queue/', '/topic/');
  const clients = await Promise.all([connect(), connect(), connect()]);
  const consumers = clients.map((client) => subscribe(client, { destination, ack: 'auto' }));
  // SUBSCRIBE has no receipt here: a message to each connection's own queue comes behind it.
  for (const client of clients) await send(client, { destination: queue() }, 'in order');
  await send(clients[0], { destination }, 'to all');
  for (const consumer of consumers) assert.strictEqual((await consumer.next()).body.toString(), 'to all');
  for (const client of clients) await disconnect(client);
});

test('a durable subscription gathers while its owner is away', limited, async () => {
  const destination = queue().replace('/queue/', '/topic/');
  const owner = { 'client-id': `stompit-${process.pid}` };
  const headers = { destination, ack: 'auto', 'activemq.subscriptionName': 'sub' };
  let client = await connect(owner);
  subscribe(client, { ...headers });
  await disconnect(client);
  const sender = await connect();
  await send(sender, { destination }, 'kept');
  await disconnect(sender);
  client = await connect(owner);
  assert.strictEqual((await subscribe(client, { ...headers }).next()).body.toString(), 'kept');
  await disconnect(client);
});

test('an error closes nothing for others', limited, async () => {
  const bad = await connect();
  const good = await connect();
  const failed = new Promise((resolve) => bad.once('error', resolve));
  bad.sendFrame('SEND', {}, {}).end('no destination');
  assert.ok((await failed).message);
  const destination = queue();
  await send(good, { destination }, 'fine');
  assert.strictEqual((await subscribe(good, { destination, ack: 'auto' }).next()).body.toString(), 'fine');
  await disconnect(good);
});

test('a thousand messages in order', limited, async () => {
  const client = await connect();
  const destination = queue();
  const all = [];
  for (let number = 0; number < 1000; number += 1) all.push(send(client, { destination }, `m${number}`));
  await Promise.all(all);
  const consumer = subscribe(client, { destination, ack: 'client-individual' });
  for (let number = 0; number < 1000; number += 1) {
    const { message, body } = await consumer.next();
    assert.strictEqual(body.toString(), `m${number}`);
    client.ack(message);
  }
  await disconnect(client);
});
