"""Only the top-level model of a body is ever changed, and nothing that two parsers could read differently passes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_gateway.body import parse_body
from gptoss_gateway.errors import BadRequestError

_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=20,
)
_SPACE = st.text(" \t\r\n", max_size=3)


@given(
    members=st.dictionaries(_TEXT.filter(lambda name: name not in ("model", "stream")), _JSON, max_size=5),
    model=_TEXT.filter(bool),
    at=st.integers(0, 5),
    spaces=st.lists(_SPACE, min_size=4, max_size=4),
    ascii_only=st.booleans(),
)
def test_every_other_byte_stays(members, model, at, spaces, ascii_only):
    dump = lambda value: json.dumps(value, ensure_ascii=ascii_only)  # noqa: E731
    pairs = [f"{dump(name)}:{dump(value)}" for name, value in members.items()]
    at = min(at, len(pairs))
    before = spaces[0] + "{" + "".join(pair + "," for pair in pairs[:at]) + spaces[1] + '"model"' + spaces[2] + ":"
    after = "".join("," + pair for pair in pairs[at:]) + "}" + spaces[3]
    body = parse_body((before + dump(model) + after).encode())
    assert body.model == model
    assert body.addressed_to("engine-id") == (before + '"engine-id"' + after).encode()


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(raw):
    try:
        body = parse_body(raw)
    except BadRequestError:
        return
    assert json.loads(body.addressed_to(body.model)) == json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"a","model":"a"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"x":1,"x":1,"model":"a"}',
        b'{"model":"a","x":Infinity}',
        b'{"model":"a",}',
        b'{"model":"a"}x',
        b'{"model":"a" "x":1}',
        b'{"model" "a"}',
        b"{'model':'a'}",
        b'\xef\xbb\xbf{"model":"a"}',
        '{"model":"a"}'.encode("utf-16"),
        b'{"model":""}',
        b'{"model":null}',
        b'{"model":["a"]}',
        b'{"model":"a","stream":"yes"}',
        b'{"model":"a","x":' + b'{"y":' * 100_000,
        b'{"model":"a","x":1' + b"0" * 5000 + b"}",
        b'"model"',
        b"{}",
        b"",
    ],
)
def test_doubtful_bodies_are_refused(raw):
    with pytest.raises(BadRequestError):
        parse_body(raw)


def test_depth_is_bounded_exactly():
    def nested(levels: int) -> bytes:
        return b'{"model":"a","x":' + b"[" * levels + b"]" * levels + b"}"

    assert parse_body(nested(63)).model == "a"
    with pytest.raises(BadRequestError, match="nested"):
        parse_body(nested(64))


@pytest.mark.parametrize(("value", "stream"), [("true", True), ("false", False), ("null", False)])
def test_stream_is_read(value, stream):
    assert parse_body(f'{{"model":"a","stream":{value}}}'.encode()).stream is stream
