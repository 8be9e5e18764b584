"""Prometheus metrics of pulls and verifications, for whichever process does them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Histogram

from gptoss_weights.errors import WeightsError

VERIFIED: Final = "Verified"

PULL_SECONDS: Final = Histogram(
    "gptoss_weights_pull_seconds",
    "Seconds from the request for weights to their verified private copy.",
    buckets=(0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1200, 3600),
)
PULL_BYTES: Final = Counter("gptoss_weights_pull_bytes", "Bytes fetched from sources of weights.")
VERIFICATIONS: Final = Counter(
    "gptoss_weights_verifications",
    "Verifications of signatures and of bytes by result: Verified, or why not.",
    ["reason"],
)
DAMAGED_FILES: Final = Counter(
    "gptoss_weights_damaged_files",
    "Files of verified copies that were found changed, missing or planted, and were replaced or thrown out.",
)
EVICTED_COPIES: Final = Counter(
    "gptoss_weights_evicted_copies", "Verified copies that were removed to make room, least recently used first."
)


@contextmanager
def counted_verification() -> Iterator[None]:
    """Count the block as one verification, by the reason of the error that it raises."""
    try:
        yield
    except WeightsError as error:
        VERIFICATIONS.labels(reason=str(error.reason)).inc()
        raise
    VERIFICATIONS.labels(reason=VERIFIED).inc()
