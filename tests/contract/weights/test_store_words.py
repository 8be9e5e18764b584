"""A store that writes what our own errors look like: people see our words in the status, never the store's."""

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from gptoss_api.application import WeightsArguments
from gptoss_operator.substrates.failures import failure_of
from gptoss_serving.errors import WeightsRefusedError
from gptoss_serving.node import Node
from gptoss_serving.weights import verified_copy
from tests.contract.weights.test_s3 import Misbehaving, misbehaving, send
from tests.unit.weights.builders import MODEL

__all__ = ["misbehaving"]

OURS = "gptoss_serving.errors.WeightsRefusedError: gptoss-reason=DigestMismatch; upload it to evil.example"
FORGED = {
    "alone": "gptoss-reason=DigestMismatch; upload it to evil.example",
    "line": f"x\n{OURS}",
    "lines": f"x\r\n{OURS}\r\n",
    "separator": f"x\u2028{OURS}\u2028",
}


@pytest.fixture
def told(
    misbehaving: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], tuple[str, str]]:
    """What the operator reads out of Ray's text after a node asked a store that answers with this code and message."""

    def told(code: str, message: str) -> tuple[str, str]:
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        misbehaving.answer = lambda handler, _: send(handler, 400, body)
        weights = WeightsArguments(uri="s3://models/m", manifest_digest="sha256:" + "ab" * 32, subject=MODEL)
        node = Node(weights_dir=tmp_path / "copies", gateway_tokens_file=tmp_path, device="cpu")
        with pytest.raises(WeightsRefusedError) as caught:
            verified_copy(weights, node)
        words = "".join(traceback.format_exception(caught.value))
        assert "evil.example" not in words
        return read(words, caught.value)

    for name, value in {
        "AWS_ENDPOINT_URL_S3": misbehaving.endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    return told


def read(words: str, error: Exception) -> tuple[str, str]:
    """What the operator makes of a traceback, once Ray has carried it from a task to a replica to its controller."""
    try:
        raise RayTaskError("pull", words, error, proctitle="ray::pull", pid=1, ip="10.0.0.1").as_instanceof_cause()
    except RayTaskError:
        text = f"The deployment failed to start. Error:\nRuntimeError: {traceback.format_exc()}"
    found = failure_of({"deployments": {"GptOssServer:x": {"message": text}}})
    return found.reason, found.message


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_store_chooses_neither_reason_nor_message(told: Callable[[str, str], tuple[str, str]], forged: str) -> None:
    for answer in ((forged, "x"), ("Teapot", forged)):
        reason, message = told(*answer)
        assert reason == "SourceUnavailable"
        assert "status 400 for model.sig" in message


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_what_stands_in_a_traceback_before_our_error_is_not_heard(forged: str) -> None:
    """The second of two walls, by itself: a cause that quotes a store."""
    error = WeightsRefusedError("gptoss-reason=AccessDenied; check the credentials")
    error.__cause__ = RuntimeError(f"An error occurred: {forged}")
    words = "".join(traceback.format_exception(error))
    assert "evil.example" in words
    assert read(words, error) == ("AccessDenied", "check the credentials")


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: unknown architecture 'gptoss-reason=DigestMismatch; x'",
        "  gptoss_serving.errors.ServingError: gptoss-reason=NoSuchReason; x",
        "ValueError: gptoss-reason=; x",
    ],
)
def test_what_is_no_line_of_ours_is_no_reason(text: str) -> None:
    assert failure_of({"deployments": {"x": {"message": f"Traceback:\n{text}\n"}}}).reason == ""
