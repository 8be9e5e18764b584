"""From nodes' labels, a deployment's own words or an administrator's to the accelerators it may run on. Pure.

Labels are those of NVIDIA's gpu-feature-discovery (``nvidia.com/gpu.product``, ``.memory``, ``.compute.major``;
with partitions of their own resource names ``nvidia.com/mig-1g.10gb.product`` and so on) and of AMD's node
labeller (``amd.com/gpu.product-name``, ``amd.com/gpu.vram``).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gptoss_api.accelerator import AcceleratorRequest
from gptoss_api.deployment import GptOssDeploymentSpec
from gptoss_api.hardware import Accelerator, accelerator_by_figures, accelerators_of_product
from gptoss_operator.kuberay_settings import KubeRaySettings
from gptoss_operator.plan.observation import Hardware, NodeKind
from gptoss_operator.plan.rayservice.workload import Raw

_HOW_TO_TELL = (
    "name nodes of one kind in spec.accelerator.product, label them with NVIDIA's gpu-feature-discovery or AMD's node "
    "labeller, or have an administrator list what there is in kubeRay.hardware of the operator's settings"
)
_UNSEEN = "Nodes that are still to come count where spec.accelerator.product names them or kubeRay.hardware lists them."
_KUBERNETES_OWN = re.compile(r"^(cpu|memory|pods|ephemeral-storage|hugepages-.*|attachable-volumes-.*)$")
_VRAM_MIB = {"M": 1, "Mi": 1, "G": 1024, "Gi": 1024, "T": 1024**2, "Ti": 1024**2}
"""AMD's labeller says 192G where it means GiB."""


def lean_node(raw: Raw) -> Raw:
    """Leave everything out but names, labels and counts of extended resources."""
    metadata = {name: raw["metadata"].get(name) for name in ("name", "uid", "resourceVersion")}
    allocatable = (raw.get("status") or {}).get("allocatable") or {}
    counts = {
        name: int(count) for name, count in allocatable.items() if not _KUBERNETES_OWN.match(name) and _is_count(count)
    }
    labels = raw["metadata"].get("labels") or {}
    return {"metadata": metadata, "labels": dict(labels) if counts else {}, "counts": counts}


def hardware_for(spec: GptOssDeploymentSpec, settings: KubeRaySettings, nodes: Iterable[Raw]) -> Hardware:
    """Return the accelerators that a deployment's pods may get.

    An administrator's list counts more than the nodes that are there just now. Taints are not looked at: a node that
    pods do not tolerate only makes the answer less certain.

    Args:
        nodes: the cluster's nodes as ``lean_node`` leaves them.
    """
    request = spec.accelerator or AcceleratorRequest()
    kinds, strangers = set(), set()
    if request.resource is not None:
        pools = [pool for pool in settings.hardware if pool.offers(request)]
        kinds = {NodeKind(candidates=(pool.card,), count=pool.per_node) for pool in pools}
        for node in () if pools else nodes:
            count = node["counts"].get(request.resource, 0)
            if count < 1 or not _selected(node, spec, request):
                continue
            candidates = _candidates(node["labels"], request)
            if candidates:
                kinds.add(NodeKind(candidates=candidates, count=count))
            else:
                strangers.add(_product(node["labels"], request) or f"{request.resource} of no known product")
        if not kinds and not strangers and request.product is not None:
            if candidates := accelerators_of_product(request.product):
                kinds = {NodeKind(candidates=candidates, count=None)}
            else:
                strangers = {request.product}
    return Hardware(
        where="this Kubernetes cluster",
        kinds=tuple(sorted(kinds, key=lambda kind: kind.order)),
        strangers=tuple(sorted(strangers)),
        how_to_tell=_HOW_TO_TELL,
        unseen=_UNSEEN,
    )


def _selected(node: Raw, spec: GptOssDeploymentSpec, request: AcceleratorRequest) -> bool:
    selector = {**(spec.pod.node_selector if spec.pod is not None else {}), **request.node_selector}
    labels: Mapping[str, str] = node["labels"]
    return selector.items() <= labels.items()


def _candidates(labels: Mapping[str, str], request: AcceleratorRequest) -> tuple[Accelerator, ...]:
    """What the node's accelerators may be. Those that several pods share have no memory to count on."""
    product = _product(labels, request)
    if product is None or product.endswith("-SHARED") or _number(labels.get(f"{request.resource}.replicas")) > 1:
        return ()
    if request.vendor == "amd":
        vram = re.fullmatch(r"(\d+)([A-Za-z]+)", labels.get("amd.com/gpu.vram", ""))
        mib = int(vram[1]) * _VRAM_MIB.get(vram[2], 0) if vram is not None else 0
        return accelerators_of_product(product, driver_mib=mib or None)
    mib = _number(labels.get(f"{request.resource}.memory"))
    found = accelerators_of_product(product, driver_mib=mib or None)
    if found:
        return found
    major, minor = (labels.get(f"nvidia.com/gpu.compute.{part}", "") for part in ("major", "minor"))
    card = accelerator_by_figures(product, capability=f"{major}.{minor}", driver_mib=mib)
    return (card,) if card is not None else ()


def _product(labels: Mapping[str, str], request: AcceleratorRequest) -> str | None:
    """A partition's own label, where its resource has one, else the card's."""
    return labels.get(f"{request.resource}.product") or labels.get(request.product_label)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


def _is_count(value: Any) -> bool:
    return str(value).isdigit() and int(value) > 0
