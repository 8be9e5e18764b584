"""What every command that talks to a cluster shares: its options, one connection, errors as sentences."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gptoss_cli.exit_codes import ExitCode
from gptoss_kube.client import Kube, Object
from gptoss_kube.errors import KubeError, NotFound, Unauthorized, UnknownResource, Unreachable
from gptoss_kube.resources import GPT_OSS_DEPLOYMENTS

FIELD_MANAGER = "gptoss-cli"

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")


class NegativeError(click.ClickException):
    """The question was answered, with no."""

    exit_code = int(ExitCode.NEGATIVE)


def cluster_options(command: _Command) -> _Command:
    """Add ``--kubeconfig``, ``--context`` and ``--namespace`` to a command."""
    for option in (
        click.option("-n", "--namespace", help="Namespace; by default the context's, or the pod's own."),
        click.option("--context", help="Context of the kubeconfig to use."),
        click.option(
            "--kubeconfig",
            envvar="KUBECONFIG",
            type=click.Path(path_type=Path),
            help="Kubeconfig; by default ~/.kube/config, or the service account inside a pod. [env: KUBECONFIG]",
        ),
    ):
        command = option(command)
    return command


def with_kube(
    work: Callable[[Kube, str], Awaitable[_Result]],
    *,
    kubeconfig: Path | None,
    context: str | None,
    namespace: str | None,
) -> _Result:
    """Run ``work(kube, namespace)`` against the cluster; failures become one sentence and exit code 1."""
    return asyncio.run(_with_kube(work, kubeconfig or _default_kubeconfig(), context, namespace))


async def read_deployment(kube: Kube, namespace: str, name: str) -> Object:
    """Read one GptOssDeployment; an absent one is a sentence for people."""
    try:
        return await kube.get(GPT_OSS_DEPLOYMENTS, name, namespace=namespace)
    except NotFound as error:
        raise click.ClickException(
            f"there is no GptOssDeployment {name!r} in namespace {namespace!r}: "
            "`gptoss status --all-namespaces` lists those that exist"
        ) from error


async def _with_kube(
    work: Callable[[Kube, str], Awaitable[_Result]], kubeconfig: Path | None, context: str | None, namespace: str | None
) -> _Result:
    server = ""
    try:
        async with Kube(kubeconfig=kubeconfig, context=context, user_agent="gptoss-cli") as kube:
            connection = await kube.connection()
            server = connection.server
            return await work(kube, namespace or connection.default_namespace or "default")
    except UnknownResource as error:
        raise click.ClickException(
            "this cluster does not know GptOssDeployment: apply the CRDs of gptoss-operator first"
        ) from error
    except Unreachable as error:
        raise click.ClickException(
            f"{server} can't be reached: is it up, and is it the cluster you mean (--context, --kubeconfig)? {error}"
        ) from error
    except Unauthorized as error:
        raise click.ClickException(
            f"{server} does not know who you are: log in to the cluster again. {error}"
        ) from error
    except KubeError as error:
        raise click.ClickException(str(error)) from error


def _default_kubeconfig() -> Path | None:
    usual = Path.home() / ".kube" / "config"
    if usual.is_file():
        return usual
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return None
    raise click.ClickException(
        f"there is no kubeconfig: name one with --kubeconfig or KUBECONFIG, or put it at {usual}"
    )
