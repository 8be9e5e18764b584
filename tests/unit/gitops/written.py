"""What the operator writes in the lives of which `statuses/` holds a moment each.

``python -m tests.unit.gitops.written`` takes today's conditions into those files.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.unit.operator.test_lifecycle import QUIET, ROOMY, UNSIGNED, World

STATUSES = Path(__file__).parent / "statuses"


def _starting() -> World:
    world = World()
    world.hardware = ROOMY
    world.settle()
    return world


def _serving() -> World:
    world = _starting()
    world.live()
    return world


def _asleep() -> World:
    world = _serving()
    world.fall_asleep()
    return world


def _waking() -> World:
    world = _asleep()
    world.demand = replace(QUIET, active=True, activity_at=world.now)
    world.settle()
    return world


def _suspended() -> World:
    world = _serving()
    world.spec = {**world.spec, "suspend": True}
    world.generation += 1
    world.settle()
    world.demand = replace(QUIET, acknowledged=1)
    world.live()
    return world


def _untrusted() -> World:
    world = World()
    world.hardware, world.trust = ROOMY, UNSIGNED
    world.settle()
    return world


LIVES: dict[str, Callable[[], World]] = {
    "starting": _starting,
    "serving": _serving,
    "asleep": _asleep,
    "waking": _waking,
    "suspended": _suspended,
    "untrusted": _untrusted,
}


def conditions_of(world: World) -> list[dict[str, Any]]:
    """Return the conditions as the API server stores them."""
    written = json.loads(world.status.model_dump_json(by_alias=True, exclude_none=True))
    return list(written["conditions"])


if __name__ == "__main__":
    for name, live in LIVES.items():
        path, world = STATUSES / f"{name}.json", live()
        document = json.loads(path.read_text())
        document["metadata"]["generation"] = document["status"]["observedGeneration"] = world.generation
        document["status"]["conditions"] = conditions_of(world)
        path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
