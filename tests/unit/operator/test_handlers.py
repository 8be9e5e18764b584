"""Which of the objects that kopf tells of concern an operator of some namespaces."""

from typing import Any

import pytest

from gptoss_operator.cache import Kind
from gptoss_operator.handlers import Watches


class Heard:
    """Notes what the intake is told."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def seen(self, _: Kind, raw: dict[str, Any]) -> None:
        self.names.append(raw["metadata"]["name"])

    def gone(self, _: Kind, namespace: str, name: str, uid: str | None) -> None:
        self.names.append(f"{namespace}/{name} {uid}")


async def told(kind: Kind, namespace: str, *, watched: tuple[str, ...], event: str | None = None) -> list[str]:
    heard = Heard()
    watches = Watches(
        intake=heard,  # type: ignore[arg-type]
        login=None,  # type: ignore[arg-type]
        clock=None,  # type: ignore[arg-type]
        namespaces=watched,
        system_namespace="gptoss-system",
        after_start=lambda: None,
    )
    raw = {"metadata": {"name": "x", "namespace": namespace, "uid": "u"}}
    await watches._handler(kind)(event={"type": event, "object": raw})
    return heard.names


@pytest.mark.parametrize(
    ("kind", "namespace", "watched", "concerns"),
    [
        (Kind.DEPLOYMENT, "ml", ("ml",), True),
        (Kind.DEPLOYMENT, "ml", (), True),
        (Kind.DEPLOYMENT, "gptoss-system", ("ml",), False),  # watched for the reports alone
        (Kind.DEPLOYMENT, "gptoss-system", (), True),
        (Kind.REPORT, "gptoss-system", ("ml",), True),
        (Kind.REPORT, "ml", ("ml",), False),  # a tenant's word is no gateway's
        (Kind.REPORT, "ml", (), False),
        (Kind.POLICY, "", ("ml",), True),
        (Kind.NAMESPACE, "", ("ml",), True),
    ],
)
async def test_what_a_list_would_not_have_is_not_taken_from_a_watch(
    kind: Kind, namespace: str, watched: tuple[str, ...], concerns: bool
) -> None:
    assert await told(kind, namespace, watched=watched) == (["x"] if concerns else [])


async def test_a_deletion_names_the_very_object() -> None:
    assert await told(Kind.DEPLOYMENT, "ml", watched=("ml",), event="DELETED") == ["ml/x u"]
