"""Asking an engine for its count in the client's place."""

import json

import pytest

from gptoss_gateway.body import parse_body
from gptoss_gateway.usage import asking_for_usage

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "path", "options"),
    [
        ({"stream": True}, CHAT, {"include_usage": True}),
        ({"stream": True}, "/v1/completions", {"include_usage": True}),
        ({"stream": True, "stream_options": None}, CHAT, {"include_usage": True}),
        ({"stream": True, "stream_options": {"include_usage": False}}, CHAT, {"include_usage": True}),
        ({"stream": True, "stream_options": {"x": 1}}, CHAT, {"x": 1, "include_usage": True}),
        # It would show in every chunk, and without include_usage it does nothing.
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, CHAT, {"include_usage": True}),
        ({"stream": True, "stream_options": {"include_usage": True}}, CHAT, None),
        ({"stream": True, "stream_options": "yes"}, CHAT, None),
        ({"stream": False}, CHAT, None),
        ({}, CHAT, None),
        ({"stream": True}, "/v1/responses", None),
        ({"stream": True}, "/v1/messages", None),
    ],
)
def test_streams_that_would_not_tell_are_asked(body, path, options):
    parsed = parse_body(json.dumps({"model": "a", **body, "n": 1}).encode())
    asking = asking_for_usage(parsed, path)
    assert bool(asking) is (options is not None)
    sent = json.loads(parsed.addressed_to("b", asking))
    assert sent == {"model": "b", **body, "n": 1} | ({"stream_options": options} if options else {})


def test_every_other_byte_stays_as_it_is():
    raw = b' { "stream_options" : { "x":1.50 } ,"stream":true, "mod\\u0065l" :"a","t":"}" } \n'
    parsed = parse_body(raw)
    assert parsed.addressed_to("b", {"stream_options": b"{}"}) == (
        b' { "stream_options" : {} ,"stream":true, "mod\\u0065l" :"b","t":"}" } \n'
    )
    assert parsed.addressed_to("b", {"new": b"1"}) == (
        b' { "stream_options" : { "x":1.50 } ,"stream":true, "mod\\u0065l" :"b","t":"}" ,"new":1} \n'
    )
