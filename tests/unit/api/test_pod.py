"""Quantities of Kubernetes as the numbers that they are."""

import pytest

from gptoss_api.pod import amount


@pytest.mark.parametrize(
    ("quantity", "number"),
    [
        ("200Gi", 200 * 2**30),
        ("1.5Ti", 3 * 2**39),
        ("2M", 2_000_000),
        ("3k", 3000),
        ("7", 7),
        ("0.1", 1),
        ("1500m", 2),
        ("64Ki", 65536),
        ("1G", 10**9),
        ("4T", 4 * 10**12),
        ("5Mi", 5 * 2**20),
    ],
)
def test_a_quantity_is_a_number_rounded_up(quantity: str, number: int) -> None:
    assert amount(quantity) == number
