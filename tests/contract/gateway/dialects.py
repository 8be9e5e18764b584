"""A stream in each dialect that the gateway speaks, asked for and read by the client library it is for."""

from collections.abc import AsyncIterator

import anthropic
import openai

from gptoss_gateway.server import Server
from tests.contract.gateway.house import KEY, client

MESSAGES = [{"role": "user", "content": "Hi"}]
ERRORS = (openai.APIError, anthropic.APIError)


async def chat(server: Server) -> AsyncIterator[str]:
    async with client(server) as api:
        stream = await api.chat.completions.create(model="assistant", messages=MESSAGES, stream=True)
        async for chunk in stream:
            yield chunk.choices[0].delta.content


async def responses(server: Server) -> AsyncIterator[str]:
    async with client(server) as api:
        async for event in await api.responses.create(model="assistant", input="Hi", stream=True):
            if event.type == "response.output_text.delta":
                yield event.delta


async def messages(server: Server) -> AsyncIterator[str]:
    async with (
        anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY, max_retries=0, timeout=60.0) as api,
        api.messages.stream(model="assistant", max_tokens=9, messages=MESSAGES) as stream,
    ):
        async for text in stream.text_stream:
            yield text


STREAMS = {"chat": chat, "responses": responses, "messages": messages}
