// OpenAI's client for Node against a gateway: does what its first argument names, prints what it saw as JSON.
import OpenAI from "openai";

const [what, baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const chat = { model: "assistant", messages: [{ role: "user", content: "Hi" }] };

async function words(stream) {
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  return text;
}

const deeds = {
  models: async () => (await client.models.list()).data.map((model) => model.id),
  whole: async () => (await client.chat.completions.create(chat)).choices[0].message.content,
  stream: async () => words(await client.chat.completions.create({ ...chat, stream: true })),
  responses: async () => {
    const kinds = [];
    for await (const event of await client.responses.create({ model: "assistant", input: "Hi", stream: true }))
      kinds.push(event.type);
    return kinds;
  },
};

try {
  console.log(JSON.stringify({ saw: await deeds[what]() }));
} catch (error) {
  const headers = Object.fromEntries(error.headers ?? []);
  console.log(JSON.stringify({ kind: error.constructor.name, status: error.status, code: error.code, headers }));
}
