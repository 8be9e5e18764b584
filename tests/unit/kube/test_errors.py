"""Every answer of the API server becomes one type of error."""

import json

import pytest

from gptoss_kube import errors


def answered(status: int, *, retry_after: str | None = None, **body: object) -> errors.KubeError:
    raw = json.dumps({"kind": "Status", **body}).encode() if body else b"404 page not found\n"
    return errors.error_from_response(status=status, body=raw, retry_after=retry_after, request="GET /x")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"message": "m"}, errors.Invalid),
        (401, {"message": "m"}, errors.Unauthorized),
        (403, {"message": "m"}, errors.Forbidden),
        (404, {"message": "m", "details": {"kind": "pods"}}, errors.NotFound),
        (404, {}, errors.UnknownResource),
        (408, {"message": "m"}, errors.ServerFailed),
        (409, {"reason": "Conflict"}, errors.Conflict),
        (409, {"reason": "AlreadyExists"}, errors.AlreadyExists),
        (410, {"reason": "Expired"}, errors.Gone),
        (415, {"message": "m"}, errors.Invalid),
        (422, {"message": "m"}, errors.Invalid),
        (429, {"message": "m"}, errors.TooManyRequests),
        (500, {"message": "etcd"}, errors.ServerFailed),
        (500, {"message": "failed to create typed patch object (a/b): .c"}, errors.Invalid),
        (503, {}, errors.ServerFailed),
        (504, {"reason": "Timeout"}, errors.ServerFailed),
    ],
)
def test_types(status: int, body: dict, kind: type[errors.KubeError]):
    assert type(answered(status, **body)) is kind


def test_a_missing_type_is_no_missing_object():
    assert not isinstance(answered(404), errors.NotFound)


def test_retry_after_is_kept():
    error = answered(429, retry_after="7", message="slow down")
    assert isinstance(error, errors.TooManyRequests)
    assert error.retry_after == 7.0
    error = answered(429, message="slow down", details={"retryAfterSeconds": 3})
    assert isinstance(error, errors.Transient)
    assert error.retry_after == 3


def test_the_sentence_names_request_and_cause():
    error = answered(422, message="bad colour", details={"kind": "x", "causes": [{"field": ".spec.colour"}]})
    assert str(error) == "GET /x: bad colour"
    assert isinstance(error, errors.StatusError)
    assert error.causes[0]["field"] == ".spec.colour"


def test_a_proxys_page_is_quoted_not_parsed():
    error = errors.error_from_response(status=502, body=b"<html>Bad", retry_after=None, request="GET /x")
    assert isinstance(error, errors.ServerFailed)
    assert "<html>Bad" in str(error)
