"""From wishes to a Ray cluster's one configuration.

Ray takes the configuration of all applications of a cluster in one PUT, and removes what it leaves
out. So everything that isn't ours goes back exactly as it came, and nothing goes at all when Ray
hides a part of it. What may change in place (bounds, queues, drain time) stands in ``deployments``
from the first write on: added later, Ray would restart the engine for it (measured with Ray 2.60).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss_api.application import is_ours, server_deployment_name
from gptoss_api.conditions import Reason
from gptoss_api.deployment import GptOssDeployment
from gptoss_api.engine import EngineConfig, max_ongoing_requests, target_ongoing_requests
from gptoss_api.names import MAX_REQUEST_SECONDS, application_name, route_prefix
from gptoss_operator.plan.rayservice.render import Rendered

REDACTED = "<redacted>"
DEPLOY_FAILED = "DEPLOY_FAILED"
DELETING = "DELETING"
_FILLS = 4
"""How often a replica may be filled: twice by gateways together, more while others join them at full load."""
_QUESTIONS = 8
_SETTLED = frozenset({"RUNNING", "UNHEALTHY", DEPLOY_FAILED})


@dataclass(frozen=True, kw_only=True)
class Present:
    """The application is wanted like this. A higher ``attempt`` asks for a failed one to be started anew.

    Without ``create`` one that is there is changed, and one that Ray has lost is not put back.
    ``rendered`` is what KubeRay is given for it, where KubeRay runs it; where nothing is to be given,
    ``gateway_tokens`` is all of it that counts for what runs.
    """

    config: Mapping[str, Any]
    attempt: int = 1
    create: bool = True
    rendered: Rendered | None = None
    gateway_tokens: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Absent:
    """The application is not wanted."""


@dataclass(frozen=True)
class Keep:
    """Whatever there is shall stay as it is, but for ``gateway_tokens``: on KubeRay, those that what runs accepts."""

    gateway_tokens: Mapping[str, Any] | None = None


Wish = Present | Absent | Keep


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """What to do with a Ray cluster.

    Attributes:
        document: configuration to PUT, None if all is as wanted.
        conflicts: application names that were left out, and why.
        trouble: reason and message why nothing may be written.
        moving: something is under way: look again soon.
    """

    document: Mapping[str, Any] | None = None
    conflicts: Mapping[str, str] = field(default_factory=dict)
    trouble: tuple[str, str] | None = None
    moving: bool = False


def application_config(
    deployment: GptOssDeployment,
    engine: EngineConfig,
    arguments: Mapping[str, Any],
    *,
    min_replicas: int,
    installation: str,
    import_path: str,
) -> dict[str, Any]:
    """Return Ray's configuration of a deployment's application. ``arguments`` go in as they are.

    ``min_replicas`` is what must stay up now, by specification and schedules; zero counts as one here.
    """
    scaling = deployment.spec.scaling
    return {
        "name": application_name(installation, deployment.namespace, deployment.name),
        "route_prefix": route_prefix(deployment.namespace, deployment.name),
        "import_path": import_path,
        "args": dict(arguments),
        "deployments": [
            {
                "name": server_deployment_name(str(arguments["modelId"])),
                "autoscaling_config": {
                    # From zero to one and back is ours; Ray only ever moves between one and the most.
                    "min_replicas": max(1, min_replicas),
                    "max_replicas": max(1, scaling.max_replicas),
                    "target_ongoing_requests": target_ongoing_requests(deployment.spec, engine.max_num_seqs),
                    "upscale_delay_s": scaling.scale_up_delay_seconds,
                    "downscale_delay_s": scaling.scale_down_delay_seconds,
                },
                # More than gateways send: in a replica that takes no more, the question whether it answers queues too.
                "max_ongoing_requests": _FILLS * max_ongoing_requests(deployment.spec, engine.max_num_seqs)
                + _QUESTIONS,
                "graceful_shutdown_timeout_s": MAX_REQUEST_SECONDS,
                "max_surge_percent": 100 if deployment.spec.rollout_strategy.type == "BlueGreen" else 0,
            }
        ],
    }


def covers(deployed: Any, wanted: Any) -> bool:
    """Tell whether a deployed configuration holds everything that is wanted.

    Ray may fill in what was left open; lists of named things are compared by name.
    Arguments are compared exactly: a key too many restarts the engine just as one too few does.
    """
    if deployed == wanted:
        return True
    if isinstance(wanted, Mapping):
        return isinstance(deployed, Mapping) and all(
            key in deployed and (deployed[key] == value if key == "args" else covers(deployed[key], value))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list) and all(isinstance(each, Mapping) and "name" in each for each in wanted):
        if not isinstance(deployed, list):
            return False
        by_name = {each.get("name"): each for each in deployed if isinstance(each, Mapping)}
        return all(covers(by_name.get(each["name"]), each) for each in wanted)
    return False


def plan_cluster(
    details: Mapping[str, Any],
    wishes: Mapping[str, Wish],
    failed_attempts: Mapping[str, int],
    *,
    installation: str,
    complete: Callable[[], bool],
    http_options: Mapping[str, Any],
) -> ClusterPlan:
    """Merge our wishes into a cluster's configuration.

    Args:
        details: Ray's answer to ``GET /api/serve/applications/``.
        wishes: by application name, what every deployment planned so far wants.
        failed_attempts: by application name, the attempt whose failure Ray still shows.
        installation: marks what is ours.
        complete: tells whether every deployment of this cluster is known and planned, so that what nobody
            wants may go; asked only if there is such an application.
        http_options: for a cluster where Serve doesn't run yet.
    """
    applications: Mapping[str, Mapping[str, Any]] = details.get("applications") or {}
    kept: list[Mapping[str, Any]] = []
    ours: dict[str, Mapping[str, Any]] = {}
    taken_names: set[str] = set()
    taken_routes: dict[str, str] = {}
    for name, application in applications.items():
        config = application.get("deployed_app_config")
        if config is not None and is_ours({**config, "name": name}, installation):
            ours[name] = config
        elif application.get("status") == DELETING:
            continue  # A foreign one on its way out would come back if it were named.
        else:
            taken_names.add(name)
            route = application.get("route_prefix") or (config or {}).get("route_prefix")
            if route:
                taken_routes[route] = name
            if config is not None and application.get("source") != "imperative":
                kept.append(config)

    result: list[Mapping[str, Any]] = []
    conflicts: dict[str, str] = {}
    changed = False
    moving = any(applications[name].get("status") not in _SETTLED for name in applications if name in {*ours, *wishes})
    unwanted: Wish = Absent() if not ours.keys() <= wishes.keys() and complete() else Keep()
    for name in sorted(ours.keys() | wishes.keys()):
        deployed = ours.get(name)
        wish = wishes.get(name, unwanted)
        match wish:
            case Keep():
                if deployed is not None:
                    result.append(deployed)
            case Absent():
                changed |= deployed is not None
            case Present(create=False) if deployed is None:
                pass
            case Present(config=config):
                conflict = _conflict(name, config, taken_names, taken_routes)
                if conflict is not None:
                    conflicts[name] = conflict
                    changed |= deployed is not None
                elif deployed is not None and _stuck(applications[name], deployed, wish, failed_attempts.get(name)):
                    # The same configuration again does nothing for a failed application: out it goes first.
                    changed = moving = True
                elif deployed is not None and covers(deployed, config):
                    result.append(deployed)
                else:
                    result.append(config)
                    changed = moving = True
    if not changed:
        return ClusterPlan(conflicts=conflicts, moving=moving)
    if _hides_something(kept):
        return ClusterPlan(
            conflicts=conflicts,
            trouble=(
                Reason.FOREIGN_CONFIGURATION_REDACTED,
                "Ray hides values of other applications' configuration from the operator, so writing it back would "
                "destroy them; check what stands between the operator and the Ray dashboard",
            ),
        )
    return ClusterPlan(document=_document(details, [*kept, *result], http_options), conflicts=conflicts, moving=True)


def _document(
    details: Mapping[str, Any], applications: list[Mapping[str, Any]], http_options: Mapping[str, Any]
) -> dict[str, Any]:
    document: dict[str, Any] = {"applications": applications}
    running = details.get("http_options")
    if running:
        # Serve runs: these can't change any more, and saying something else only makes it complain.
        for key in ("http_options", "grpc_options", "proxy_location"):
            if details.get(key) is not None:
                document[key] = details[key]
    elif http_options:
        document["http_options"] = dict(http_options)
    if details.get("target_capacity") is not None:
        document["target_capacity"] = details["target_capacity"]
    return document


def _conflict(
    name: str, config: Mapping[str, Any], taken_names: set[str], taken_routes: Mapping[str, str]
) -> str | None:
    if name in taken_names:
        return (
            f"the Ray cluster already runs an application named {name} that this operator did not make; "
            "remove it there or give this deployment another name"
        )
    holder = taken_routes.get(config["route_prefix"])
    if holder is not None:
        return (
            f"the Ray cluster already serves {config['route_prefix']} with application {holder}; "
            "remove it there or give this deployment another name"
        )
    return None


def _stuck(application: Mapping[str, Any], deployed: Mapping[str, Any], wish: Present, failed: int | None) -> bool:
    return (
        application.get("status") == DEPLOY_FAILED
        and failed is not None
        and wish.attempt > failed
        and covers(deployed, wish.config)
    )


def _hides_something(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_hides_something(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(_hides_something(each) for each in value)
    return bool(value == REDACTED)
