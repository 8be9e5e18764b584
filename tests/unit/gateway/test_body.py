"""Only the top-level model of a body is ever changed, and nothing that two parsers could read differently passes."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_gateway.body import MAX_NAME, parse_body
from gptoss_gateway.errors import BadRequestError
from gptoss_gateway.stateless import require_stateless

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
        b'{"model":1' + b"0" * 5000 + b"}",
        b'{"model":"a","x":"\xc3("}',
        b'{"model":"a","x":"\xed\xa0\x80"}',
        b'{"model":"a","x":"\\ud800","\\ud800":1}',
        b'{"model":"a"' + b"".join(b',"%d":1' % n for n in range(1000)) + b"}",
        b'{"model":"a","x":[' + b'"",' * 250_000 + b"0]}",
        b'{"model":"a","x":[1,2],"x":[2,1]}',
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


def test_depth_counts_containers_and_not_what_strings_hold():
    text = b'{"model":"a","x":[' + b'"[[[{{{\\"[[",' * 100 + b'{"y":[{}]}]}'
    assert parse_body(text).model == "a"
    with pytest.raises(BadRequestError, match="nested"):
        parse_body(b'{"model":"a","x":' + b'{"y":[' * 32 + b"0" + b"]}" * 32 + b"}")


def test_a_hostile_body_costs_memory_by_its_size_and_not_by_its_shape():
    raw = b'{"model":"a","x":[' + b"[]," * 200_000 + b"[" + b"0," * 3_000_000 + b"0]]}"
    tracemalloc.start()
    try:
        parse_body(raw)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * len(raw)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("member", "refused"),
    [
        ('"store": true', True),
        ('"store": false', False),
        ('"store": null', False),
        ('"background": true', True),
        ('"previous_response_id": "resp_1"', True),
        ('"previous_response_id": null', False),
        ('"conversation": {"id": "conv_1"}', True),
        ('"input": "store"', False),
    ],
)
def test_what_needs_a_memory_is_refused_by_name(member, refused):
    body = parse_body(f'{{"model":"a", {member}}}'.encode())
    if refused:
        with pytest.raises(BadRequestError, match="not stored here") as caught:
            require_stateless(body)
        assert caught.value.param == member.split('"')[1]
    else:
        require_stateless(body)


def test_a_model_is_no_longer_than_any_name():
    assert parse_body(b'{"model":"%s"}' % (b"m" * MAX_NAME)).model == "m" * MAX_NAME
    with pytest.raises(BadRequestError, match="longer than any name") as caught:
        parse_body(b'{"model":"%s"}' % (b"m" * (MAX_NAME + 1)))
    assert len(str(caught.value)) < 100
