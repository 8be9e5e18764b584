"""A stream is complete only when its last event was seen; its bytes pass as they came."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_gateway.errors import Dialect
from gptoss_gateway.sse import MAX_LINE_BYTES, EventStream
from gptoss_gateway.usage import Tally, Usage, usage_of

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
    events = EventStream(dialect, Tally())
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    passed = b"".join(events.feed(stream[a:b]) for a, b in pairwise(edges))
    assert passed + events.finish() == stream
    assert events.complete


@given(which=st.sampled_from(STREAMS), keep=st.integers(0, 400))
def test_a_cut_stream_is_not_complete_and_ends_in_a_whole_line(which, keep):
    dialect, stream = which
    last = stream.rstrip().rfind(b"data: [DONE]" if dialect is Dialect.OPENAI else b"event:")
    events = EventStream(dialect, Tally())
    passed = events.feed(stream[: min(keep, last + 8)]) + events.finish()
    assert not events.complete
    assert passed == b"" or passed.endswith(b"\n")
    assert stream.startswith(passed)


def test_the_last_line_counts_without_its_end():
    events = EventStream(Dialect.OPENAI, Tally())
    assert events.feed(b"data: x\n\ndata: [DONE]") == b"data: x\n\n"
    assert events.finish() == b"data: [DONE]"
    assert events.complete


def test_carriage_returns_are_known():
    events = EventStream(Dialect.RESPONSES, Tally())
    events.feed(b"event: response.completed\r\ndata: {}\r\n\r\n")
    assert events.complete


def test_a_line_without_end_is_not_kept_for_ever():
    events = EventStream(Dialect.OPENAI, Tally())
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
    tally = Tally()
    EventStream(dialect, tally).feed(stream)
    assert tally.reported == usage


USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
TEXT = b'data: {"choices":[{"delta":{"content":"\\"choices\\":[],\\"usage\\":{}"}}]}\n\n'


@given(cuts=st.lists(st.integers(0, 400), max_size=12), crlf=st.booleans())
def test_a_usage_that_the_client_did_not_ask_for_is_taken_out_however_it_comes(cuts, crlf):
    def ends(text: bytes) -> bytes:
        return text.replace(b"\n", b"\r\n") if crlf else text

    asked, unasked = ends(TEXT + TEXT + USAGE + b"data: [DONE]\n\n"), ends(TEXT + TEXT + b"data: [DONE]\n\n")
    tally = Tally(hidden=True)
    events = EventStream(Dialect.OPENAI, tally)
    edges = [0, *sorted(min(cut, len(asked)) for cut in cuts), len(asked)]
    passed = b"".join(events.feed(asked[a:b]) for a, b in pairwise(edges)) + events.finish()
    assert passed == unasked
    assert events.complete
    assert tally.reported == Usage(input=7, output=2)


@pytest.mark.parametrize(("dialect", "pieces"), [(Dialect.OPENAI, 3), (Dialect.RESPONSES, 2), (Dialect.ANTHROPIC, 2)])
def test_pieces_of_an_answer_are_counted_for_when_the_engine_tells_nothing(dialect, pieces):
    stream = {
        Dialect.OPENAI: TEXT * 3,
        Dialect.RESPONSES: b"event: response.created\ndata: {}\n\n"
        + b"event: response.output_text.delta\ndata: {}\n\n" * 2,
        Dialect.ANTHROPIC: b"event: ping\ndata: {}\n\n" + b"event: content_block_delta\ndata: {}\n\n" * 2,
    }[dialect]
    tally = Tally()
    tally.begin(401)
    EventStream(dialect, tally).feed(stream)
    assert tally.usage(status=200) == Usage(input=101, output=pieces, estimated=True)
    tally.forget()
    assert tally.usage(status=None) is None
    tally.begin(401)
    assert tally.usage(status=400) is None
    assert tally.usage(status=None) == Usage(input=101, output=0, estimated=True)


HUGE = b'{"usage":{"prompt_tokens":' + b"9" * 400 + b"}}"
DEEP = b"[" * 100_000
WORD = b'{"usage":{"prompt_tokens":"many"}}'


@pytest.mark.parametrize("document", [b"", b"[]", b"{", b"{}", b'{"usage":null}', DEEP, WORD, HUGE])
def test_odd_usage_is_no_error(document):
    assert usage_of(document) in (None, Usage())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_line_takes_no_longer_than_it_is_long_however_it_is_made_up(hidden):
    line = b"data: {" + b'"choices":[]' * 100_000 + b'"usage":{' * 100_000 + b"\n"
    events = EventStream(Dialect.OPENAI, Tally(hidden=hidden))
    assert events.feed(line) == line
