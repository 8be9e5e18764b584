"""A stream is complete only when its last event was seen; its bytes pass as they came."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_gateway.errors import Dialect
from gptoss_gateway.sse import MAX_LINE_BYTES, EventStream, Usage, usage_of

CHAT = (
    b'data: {"choices":[{"delta":{"content":"data: [DONE]\\n"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\ndata: [DONE]\n\n'
)
RESPONSES = (
    b'event: response.created\ndata: {"type":"response.created","response":{"usage":null}}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":7,'
    b'"output_tokens":2,"output_tokens_details":{"reasoning_tokens":1}}}}\n\n'
)
MESSAGES = (
    b'event: message_start\ndata: {"type":"message_start"}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)
STREAMS = [(Dialect.OPENAI, CHAT), (Dialect.RESPONSES, RESPONSES), (Dialect.ANTHROPIC, MESSAGES)]


@given(which=st.sampled_from(STREAMS), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_any_chunking_passes_every_byte_and_finds_the_end(which, cuts):
    dialect, stream = which
    events = EventStream(dialect)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    passed = b"".join(events.feed(stream[a:b]) for a, b in pairwise(edges))
    assert passed + events.finish() == stream
    assert events.complete


@given(which=st.sampled_from(STREAMS), keep=st.integers(0, 400))
def test_a_cut_stream_is_not_complete_and_ends_in_a_whole_line(which, keep):
    dialect, stream = which
    last = stream.rstrip().rfind(b"data: [DONE]" if dialect is Dialect.OPENAI else b"event:")
    events = EventStream(dialect)
    passed = events.feed(stream[: min(keep, last + 8)]) + events.finish()
    assert not events.complete
    assert passed == b"" or passed.endswith(b"\n")
    assert stream.startswith(passed)


def test_the_last_line_counts_without_its_end():
    events = EventStream(Dialect.OPENAI)
    assert events.feed(b"data: x\n\ndata: [DONE]") == b"data: x\n\n"
    assert events.finish() == b"data: [DONE]"
    assert events.complete


def test_carriage_returns_are_known():
    events = EventStream(Dialect.RESPONSES)
    events.feed(b"event: response.completed\r\ndata: {}\r\n\r\n")
    assert events.complete


def test_a_line_without_end_is_not_kept_for_ever():
    events = EventStream(Dialect.OPENAI)
    passed = sum(len(events.feed(b"x" * 65536)) for _ in range(MAX_LINE_BYTES // 65536 + 2))
    assert passed >= MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("dialect", "stream", "usage"),
    [
        (Dialect.OPENAI, CHAT, Usage(input=7, cached=4, output=2)),
        (Dialect.RESPONSES, RESPONSES, Usage(input=7, output=2, reasoning=1)),
        (Dialect.ANTHROPIC, MESSAGES, None),
    ],
)
def test_usage_is_read_where_the_engine_tells_it(dialect, stream, usage):
    events = EventStream(dialect)
    events.feed(stream)
    assert events.usage == usage


@pytest.mark.parametrize("document", [b"", b"[]", b"{", {}, {"usage": None}, {"usage": {"prompt_tokens": "many"}}])
def test_odd_usage_is_no_error(document):
    assert usage_of(document) in (None, Usage())
