"""From Ray's list of nodes, or an administrator's word, to the accelerators of a cluster. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_api.clusters import RayCluster
from gptoss_api.hardware import Accelerator, accelerators_of_ray_type
from gptoss_operator.plan.observation import Hardware, NodeKind

_TYPE = "accelerator_type:"


def hardware_of(cluster: RayCluster, nodes: Sequence[Mapping[str, Any]]) -> Hardware:
    """Return what a cluster has. An administrator's entry counts more than the nodes that run just now."""
    where = f"Ray cluster {cluster.name}"
    if cluster.hardware is not None:
        kind = NodeKind(candidates=(cluster.hardware.card,), count=cluster.hardware.per_node)
        return Hardware(where=where, kinds=(kind,))
    kinds: Counter[NodeKind] = Counter()
    strangers: set[str] = set()
    for node in nodes:
        resources = node.get("resources_total") or {}
        count = int(resources.get("GPU") or 0)
        if node.get("state") != "ALIVE" or count < 1:
            continue
        types = sorted(name.removeprefix(_TYPE) for name in resources if name.startswith(_TYPE))
        candidates = _candidates(types)
        if candidates:
            kinds[NodeKind(candidates=candidates, count=count)] += 1
        else:
            strangers.add(", ".join(types) or "GPUs of no named type")
    ordered = sorted(kinds, key=lambda kind: kind.order)
    return Hardware(where=where, kinds=tuple(ordered), strangers=tuple(sorted(strangers)))


def _candidates(types: Sequence[str]) -> tuple[Accelerator, ...]:
    """What a node's accelerators may be: a second, narrower type such as A100-80G leaves fewer."""
    found = [accelerators_of_ray_type(each) for each in types]
    if not found or not all(found):
        return ()
    return tuple(card for card in found[0] if all(card in others for others in found[1:]))
