"""What an operator writes to its log, whatever level it was asked for."""

import logging
import socket
from collections.abc import Iterator

import pytest

from gptoss_operator.__main__ import configure_logging
from gptoss_weights.errors import SourceUnavailableError
from gptoss_weights.sources import SourceSettings, open_source

SECRET = "a-session-token-that-nobody-may-read"


@pytest.fixture
def levels() -> Iterator[None]:
    """Put the levels back."""
    loggers = [logging.getLogger(name) for name in ("botocore", "kopf", "urllib3")]
    before = [each.level for each in loggers]
    yield
    for each, level in zip(loggers, before, strict=True):
        each.setLevel(level)


def test_debug_writes_down_no_credentials(
    levels: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    caplog.set_level(logging.DEBUG)
    configure_logging("DEBUG")
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        port = nobody_listens.getsockname()[1]
        settings = SourceSettings(s3_endpoint=f"http://127.0.0.1:{port}", s3_region="here", max_attempts=1)
        with open_source("s3://models/m", settings=settings) as source, pytest.raises(SourceUnavailableError):
            source.read_small("model.sig", limit=10)
    assert SECRET not in caplog.text
