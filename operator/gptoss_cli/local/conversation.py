"""Talk to the model as any application would: the `openai` client, the gateway's address and a key."""

import json
import time
from dataclasses import dataclass
from typing import Any

from openai import OpenAI

from gptoss_cli.local.errors import StepError

REQUEST_SECONDS = 900.0  # a model that went to sleep is woken by the first of these
WEATHER_TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one question; times in seconds since it was sent."""

    what: str
    question: str
    reasoning: str
    answer: str
    first: float | None
    total: float


def ask(*, base_url: str, api_key: str, model: str, question: str, tool_question: str) -> list[Reply]:
    """Ask three ways: chat streamed, Responses, and with a tool. Raises StepError if one gives no answer."""
    with OpenAI(base_url=base_url, api_key=api_key, timeout=REQUEST_SECONDS, max_retries=2) as client:
        replies = [
            _streamed_chat(client, model, question),
            _responses(client, model, question),
            _tool_call(client, model, tool_question),
        ]
    for reply in replies:
        if not reply.answer:
            raise StepError(f"{reply.what} gave no answer to {reply.question!r}: see the logs of gateway and Ray")
    return replies


def _streamed_chat(client: OpenAI, model: str, question: str) -> Reply:
    began = time.monotonic()
    first: float | None = None
    reasoning, answer = "", ""
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=200, stream=True
    )
    for chunk in stream:
        for choice in chunk.choices:
            extra = choice.delta.model_extra or {}
            thought = extra.get("reasoning") or extra.get("reasoning_content") or ""
            said = choice.delta.content or ""
            if first is None and (thought or said):
                first = time.monotonic() - began
            reasoning, answer = reasoning + thought, answer + said
    total = time.monotonic() - began
    return Reply(what="chat, streamed", question=question, reasoning=reasoning, answer=answer, first=first, total=total)


def _responses(client: OpenAI, model: str, question: str) -> Reply:
    began = time.monotonic()
    response = client.responses.create(model=model, input=question, temperature=0, max_output_tokens=200)
    total = time.monotonic() - began
    reasoning = "".join(
        str(getattr(part, "text", ""))
        for item in response.output
        if item.type == "reasoning"
        for part in (item.content or [])
    )
    return Reply(
        what="responses", question=question, reasoning=reasoning, answer=response.output_text, first=None, total=total
    )


def _tool_call(client: OpenAI, model: str, question: str) -> Reply:
    began = time.monotonic()
    tool: Any = {"type": "function", "function": WEATHER_TOOL}
    done = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], tools=[tool], temperature=0, max_tokens=200
    )
    total = time.monotonic() - began
    message = done.choices[0].message
    calls = [
        f"{call.function.name}({json.dumps(json.loads(call.function.arguments))})"
        for call in message.tool_calls or []
        if call.type == "function"
    ]
    return Reply(
        what="chat, with a tool", question=question, reasoning="", answer=", ".join(calls), first=None, total=total
    )
