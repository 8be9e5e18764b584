"""What closes every handler of the process leaves Serve's log of a replica as it was."""

import logging
from collections.abc import Iterator
from logging.config import dictConfig
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest

from gptoss_serving.serve_logs import kept_serve_logs


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[MemoryHandler]:
    """Serve's handler of a replica, as ``configure_component_logger`` makes it."""
    logger = logging.getLogger("ray.serve")
    before, file = logger.handlers[:], logging.FileHandler(tmp_path / "replica.log")
    handler = MemoryHandler(capacity=1, target=file)
    logger.handlers[:] = [logging.StreamHandler(), handler]
    yield handler
    logger.handlers[:] = before
    file.close()


def test_a_replica_logs_on_after_vllm_has_set_up_its_own_log(handler: MemoryHandler, tmp_path: Path) -> None:
    target, logger = handler.target, logging.getLogger("ray.serve")
    logger.warning("before")
    with kept_serve_logs():
        dictConfig({"version": 1, "disable_existing_loggers": False})
        assert handler.target is None, "Python does not close handlers any more: this is not needed then"
    assert handler.target is target
    logger.warning("after")
    assert (tmp_path / "replica.log").read_text().split() == ["before", "after"]


def test_it_is_put_right_when_the_engine_does_not_start(handler: MemoryHandler) -> None:
    def start() -> None:
        handler.close()
        raise RuntimeError

    with pytest.raises(RuntimeError), kept_serve_logs():
        start()
    assert handler.target is not None
