"""A list is complete or an error, however the server cuts it into pages."""

from typing import Any

import pytest

from gptoss_kube.client import Kube
from gptoss_kube.errors import Gone
from gptoss_kube.resources import CONFIG_MAPS

GONE = Gone("history was compacted", status=410)


class Pages(Kube):
    """Answers in order, and remembers what was asked."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self._answers = list(answers)
        self.asked: list[dict[str, str]] = []

    async def _send(self, method: str, path: str, *, query: Any = None, **_: Any) -> Any:
        assert (method, path) == ("GET", "/api/v1/configmaps")
        self.asked.append(dict(query))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def page(*names: str, more: str = "") -> dict[str, Any]:
    items = [{"metadata": {"name": name}} for name in names]
    return {"metadata": {"resourceVersion": "7", "continue": more}, "items": items}


async def names(kube: Kube, **arguments: Any) -> list[str]:
    listing = await kube.list(CONFIG_MAPS, **arguments)
    assert listing.resource_version == "7"
    assert all(item["kind"] == "ConfigMap" and item["apiVersion"] == "v1" for item in listing.items)
    return [item["metadata"]["name"] for item in listing.items]


async def test_pages_follow_each_other_with_the_same_selectors_and_one_version():
    kube = Pages(page("a", more="t1"), page("b", more="t2"), page("c"))

    assert await names(kube, label_selector="app=x", resource_version="5") == ["a", "b", "c"]

    assert [each["labelSelector"] for each in kube.asked] == ["app=x"] * 3
    assert [each.get("continue") for each in kube.asked] == [None, "t1", "t2"]
    assert ["resourceVersion" in each for each in kube.asked] == [True, False, False]


async def test_history_that_was_compacted_between_pages_means_all_at_once_and_nothing_twice():
    kube = Pages(page("a", more="t1"), GONE, page("a", "b"))

    assert await names(kube, label_selector="app=x") == ["a", "b"]

    assert kube.asked[-1] == {"labelSelector": "app=x"}


async def test_a_version_that_is_gone_from_the_first_is_an_error():
    with pytest.raises(Gone):
        await names(Pages(GONE), resource_version="5")


async def test_and_so_is_one_that_is_gone_again():
    kube = Pages(page("a", more="t1"), GONE, GONE)

    with pytest.raises(Gone):
        await names(kube)
