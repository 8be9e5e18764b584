"""Keep Ray Serve's log of a replica open while vLLM sets up its own.

``logging.config.dictConfig``, which vLLM calls once it is imported, closes every handler of the process, Serve's
too. A closed ``MemoryHandler`` has no target any more: its file gets no further line. And when Serve's controller
starts anew it asks each replica for that file's path, takes one whose answer is an error for broken, and stops it
(Ray 2.60, ``get_component_logger_file_path``): with a controller, or a head, every engine would be lost.
"""

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler

_SERVE = "ray.serve"


@contextlib.contextmanager
def kept_serve_logs() -> Iterator[None]:
    """Give Serve's handlers their targets back, if they lose them meanwhile."""
    handlers = [each for each in logging.getLogger(_SERVE).handlers if isinstance(each, MemoryHandler)]
    targets = [each.target for each in handlers]
    try:
        yield
    finally:
        for handler, target in zip(handlers, targets, strict=True):
            handler.setTarget(target)
