"""`gptoss suspend`: set or clear `spec.suspend`."""

from pathlib import Path

import click

from gptoss_cli.cluster import FIELD_MANAGER, cluster_options, read_deployment, with_kube
from gptoss_kube.client import Kube
from gptoss_kube.resources import GPT_OSS_DEPLOYMENTS


@click.command()
@click.argument("name")
@cluster_options
@click.option("--resume", is_flag=True, help="Clear the suspension instead.")
def suspend(
    name: str,
    kubeconfig: Path | None,
    context: str | None,
    namespace: str | None,
    resume: bool,  # noqa: FBT001 - click passes options by name
) -> None:
    """Put the deployment NAME to sleep and refuse requests until it is resumed.

    This sets spec.suspend. Where GitOps owns the manifest, set it there, or it will be reverted.
    """

    async def work(kube: Kube, chosen: str) -> None:
        await read_deployment(kube, chosen, name)
        await kube.merge_patch(
            GPT_OSS_DEPLOYMENTS,
            name,
            {"spec": {"suspend": not resume}},
            namespace=chosen,
            field_manager=FIELD_MANAGER,
        )
        click.echo(f"{chosen}/{name}: {'resumed' if resume else 'suspended'}")

    with_kube(work, kubeconfig=kubeconfig, context=context, namespace=namespace)
