"""`gptoss wake`: ask for a model as a request would, by an annotation that the operator counts as demand once."""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from gptoss_api.conditions import ConditionType
from gptoss_api.names import RETRY_ANNOTATION, WAKE_ANNOTATION
from gptoss_cli.cluster import FIELD_MANAGER, NegativeError, cluster_options, read_deployment, with_kube
from gptoss_cli.conditions import condition
from gptoss_kube.client import Kube, Object
from gptoss_kube.errors import NotFound, Transient
from gptoss_kube.resources import GPT_OSS_DEPLOYMENTS

_POLL_SECONDS = 0.5


@click.command()
@click.argument("name")
@cluster_options
@click.option("--wait", is_flag=True, help="Return when the engine answers; exit 3 if it does not.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Longest wait in seconds; by default the deployment's wakeTimeoutSeconds.",
)
def wake(
    name: str,
    kubeconfig: Path | None,
    context: str | None,
    namespace: str | None,
    wait: bool,  # noqa: FBT001 - click passes options by name
    timeout: float | None,
) -> None:
    """Wake the sleeping deployment NAME, as a request would."""

    async def work(kube: Kube, chosen: str) -> None:
        deployment = await read_deployment(kube, chosen, name)
        if deployment["spec"].get("suspend"):
            raise NegativeError(f"{chosen}/{name} is suspended: `gptoss suspend {name} -n {chosen} --resume` first")
        token = datetime.now(UTC).isoformat()
        await kube.merge_patch(
            GPT_OSS_DEPLOYMENTS,
            name,
            {"metadata": {"annotations": {WAKE_ANNOTATION: token}}},
            namespace=chosen,
            field_manager=FIELD_MANAGER,
        )
        if not wait:
            click.echo(f"{chosen}/{name}: wake requested")
            return
        longest = timeout or float((deployment["spec"].get("scaling") or {}).get("wakeTimeoutSeconds", 600))
        seconds = await _until_awake(kube, chosen, name, longest)
        click.echo(f"{chosen}/{name}: awake after {seconds:.1f} s")

    with_kube(work, kubeconfig=kubeconfig, context=context, namespace=namespace)


async def _until_awake(kube: Kube, namespace: str, name: str, longest: float) -> float:
    """Poll until the engine answers and return the seconds it took; NegativeError says why it never will."""
    started = time.monotonic()
    deployment: Object = {}
    while (waited := time.monotonic() - started) < longest:
        try:
            deployment = await kube.get(GPT_OSS_DEPLOYMENTS, name, namespace=namespace)
        except NotFound as error:
            raise NegativeError(f"{namespace}/{name} was deleted meanwhile") from error
        except Transient:  # the API server restarts: the deadline bounds our patience
            await asyncio.sleep(_POLL_SECONDS)
            continue
        if condition(deployment, ConditionType.ENGINE_READY).status == "True":
            return time.monotonic() - started
        _refuse_if_stalled(deployment, namespace, name)
        await asyncio.sleep(min(_POLL_SECONDS, longest - waited))
    ready = condition(deployment, ConditionType.ENGINE_READY)
    raise NegativeError(
        f"{namespace}/{name} is not awake after {longest:g} s ({ready.reason}: {ready.message}): "
        "wait longer with --timeout, or see `gptoss status`"
    )


def _refuse_if_stalled(deployment: Mapping[str, Any], namespace: str, name: str) -> None:
    observed = (deployment.get("status") or {}).get("observedGeneration")
    stalled = condition(deployment, ConditionType.STALLED)
    if stalled.status == "True" and observed == deployment["metadata"].get("generation"):
        raise NegativeError(
            f"{namespace}/{name} can't start ({stalled.reason}): {stalled.message}\n"
            f"Once mended: kubectl annotate --overwrite -n {namespace} gptoss/{name} {RETRY_ANNOTATION}=$(date +%s)"
        )
