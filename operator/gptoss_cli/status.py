"""`gptoss status`: conditions, weights and wake times, for people and (`--json`) for programs."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptoss_api.conditions import ConditionType
from gptoss_cli.cluster import cluster_options, read_deployment, with_kube
from gptoss_cli.conditions import condition, conditions
from gptoss_cli.exit_codes import ExitCode
from gptoss_kube.client import Kube, Object
from gptoss_kube.resources import GPT_OSS_DEPLOYMENTS

_MIB = 1024**2
_GIB = 1024**3
_COLOURS = {"True": "green", "False": "red", "Unknown": "yellow"}
_GOOD_WHEN_TRUE = {ConditionType.READY, ConditionType.FIT, ConditionType.WEIGHTS_VERIFIED}
_GOOD_WHEN_FALSE = {ConditionType.STALLED, ConditionType.REVOKED, ConditionType.DEGRADED, ConditionType.NAME_CONFLICT}


@click.command()
@click.argument("name", required=False)
@cluster_options
@click.option("-A", "--all-namespaces", is_flag=True, help="List deployments of every namespace.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object for NAME, else a list.")
def status(
    name: str | None,
    kubeconfig: Path | None,
    context: str | None,
    namespace: str | None,
    all_namespaces: bool,  # noqa: FBT001 - click passes options by name
    as_json: bool,  # noqa: FBT001
) -> None:
    """Show the deployment NAME, or list all of a namespace.

    With NAME the exit code is 0 if it is Ready and 3 if not; asleep counts as Ready.
    """
    if name and all_namespaces:
        raise click.UsageError("--all-namespaces lists; it can't be combined with a NAME (give -n NAMESPACE instead)")

    async def work(kube: Kube, chosen: str) -> list[Object]:
        if name:
            return [await read_deployment(kube, chosen, name)]
        listing = await kube.list(GPT_OSS_DEPLOYMENTS, namespace=None if all_namespaces else chosen)
        return sorted(listing.items, key=lambda found: (found["metadata"]["namespace"], found["metadata"]["name"]))

    found = with_kube(work, kubeconfig=kubeconfig, context=context, namespace=namespace)
    if as_json:
        summaries = [_summary(deployment) for deployment in found]
        click.echo(json.dumps(summaries[0] if name else summaries, indent=2))
    elif name:
        _print_one(found[0])
    else:
        _print_all(found)
    if name and condition(found[0], ConditionType.READY).status != "True":
        sys.exit(ExitCode.NEGATIVE)


def _summary(deployment: Mapping[str, Any]) -> dict[str, Any]:
    metadata, reported = deployment["metadata"], deployment.get("status") or {}
    ready = condition(deployment, ConditionType.READY)
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "model": deployment["spec"]["model"],
        "ready": ready.status,
        "reason": ready.reason,
        "upToDate": reported.get("observedGeneration") == metadata.get("generation"),
        "replicas": reported.get("replicas"),
        "endpoint": reported.get("endpoint"),
        "engine": reported.get("engine"),
        "weights": reported.get("weights"),
        "pull": reported.get("pull"),
        "wake": reported.get("wake"),
        "schedule": reported.get("schedule"),
        "conditions": [asdict(seen) for seen in conditions(deployment)],
    }


def _print_all(deployments: list[Object]) -> None:
    if not deployments:
        click.echo("no GptOssDeployment found (--all-namespaces looks everywhere)")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("NAMESPACE", "NAME", "MODEL", "READY", "REASON", "REPLICAS", "WAKE", "STAGE"):
        table.add_column(column, overflow="fold")
    for deployment in deployments:
        summary = _summary(deployment)
        replicas, wake = summary["replicas"] or {}, summary["wake"] or {}
        table.add_row(
            summary["namespace"],
            summary["name"],
            summary["model"]["name"],
            Text(summary["ready"], style=_COLOURS.get(summary["ready"], "")),
            summary["reason"] or "-",
            f"{replicas.get('ready', 0)}/{replicas.get('desired', 0)}",
            _seconds(wake),
            wake.get("stage") or "-",
        )
    Console().print(table)


def _print_one(deployment: Mapping[str, Any]) -> None:
    console = Console()
    summary = _summary(deployment)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    endpoint, weights, wake = summary["endpoint"] or {}, summary["weights"] or {}, summary["wake"] or {}
    facts.add_row("Deployment", f"{summary['namespace']}/{summary['name']}")
    facts.add_row("Model", f"{summary['model']['name']} from {summary['model']['uri']}")
    facts.add_row("Endpoint", f"{endpoint['url']} (model {endpoint.get('model')})" if endpoint else "-")
    size = f" ({weights['bytes'] / _GIB:.1f} GiB)" if "bytes" in weights else ""
    facts.add_row("Weights", f"{weights.get('manifestDigest', '-')}{size}")
    if weights:
        signer = weights.get("identity") or weights.get("signer")
        signed = f"{weights.get('authority')} ({signer}), policy {weights.get('policy')}"
        facts.add_row("Signed by", signed)
    if image := (summary["engine"] or {}).get("image"):
        facts.add_row("Image", image)
    if pull := summary["pull"]:
        facts.add_row("Pull", _pull(pull))
    facts.add_row("Last wake", _seconds(wake))
    if wake.get("stage"):
        facts.add_row("Waking", f"{wake['stage']}, since {wake.get('startedAt')}")
    if schedule := summary["schedule"]:
        facts.add_row("Schedule", _schedule(schedule))
    if not summary["upToDate"]:
        facts.add_row("Note", "the operator has not looked at the latest change yet")
    console.print(facts)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("CONDITION", "STATUS", "REASON", "MESSAGE"):
        table.add_column(column, overflow="fold")
    for seen in conditions(deployment):
        table.add_row(seen.type, Text(seen.status, style=_colour(seen.type, seen.status)), seen.reason, seen.message)
    console.print(table)


def _colour(kind: str, value: str) -> str:
    """Return the colour of a condition's status; of what is neither good nor bad, such as being asleep, none."""
    if kind in _GOOD_WHEN_FALSE:
        return _COLOURS.get({"True": "False", "False": "True"}.get(value, value), "")
    return _COLOURS.get(value, "") if kind in _GOOD_WHEN_TRUE else ""


def _pull(pull: Mapping[str, Any]) -> str:
    said = [pull["progress"]] if "progress" in pull else []
    if pull.get("bytesPerSecond"):
        said.append(f"{pull['bytesPerSecond'] / _MIB:.0f} MiB/s")
    if "secondsLeft" in pull:
        said.append(f"about {pull['secondsLeft']} s to go")
    return ", ".join([*said, f"since {pull['startedAt']}"])


def _schedule(schedule: Mapping[str, Any]) -> str:
    names = ", ".join(schedule.get("open") or []) or "none open"
    now = f"at least {schedule['minReplicas']} up ({names})"
    if not schedule.get("nextChange"):
        return now
    return f"{now}, {schedule.get('nextMinReplicas', 0)} from {schedule['nextChange']}"


def _seconds(wake: Mapping[str, Any]) -> str:
    seconds = wake.get("lastSeconds")
    return "-" if seconds is None else f"{seconds:.1f} s"
