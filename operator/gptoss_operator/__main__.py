"""``python -m gptoss_operator --settings operator.yaml``: starts the operator."""

import asyncio
import logging
import sys
from pathlib import Path

import click

from gptoss_kube.errors import KubeError
from gptoss_operator.leadership import DeposedError
from gptoss_operator.process import run
from gptoss_operator.settings import SettingsError, load_settings

_TALKATIVE = ("azure", "botocore", "kopf", "urllib3")
"""At DEBUG they write down whole objects, signed addresses, and the session tokens of requests."""


@click.command(context_settings={"auto_envvar_prefix": "GPTOSS_OPERATOR"})
@click.option(
    "--settings", "settings_file", type=click.Path(path_type=Path), required=True, help="Settings file (YAML)."
)
@click.option("--kubeconfig", type=click.Path(path_type=Path), help="Kubeconfig; without it the pod's own account.")
@click.option("--read-only", is_flag=True, help="Log plans and write nothing.")
@click.option(
    "--identity", help="This replica's unique name in the Lease: the pod's. By default the host's with a random suffix."
)
@click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), default="INFO")
def main(
    settings_file: Path, kubeconfig: Path | None, identity: str | None, log_level: str, *, read_only: bool
) -> None:
    """Turn GptOssDeployments into verified engines."""
    configure_logging(log_level)
    try:
        settings = load_settings(settings_file)
        asyncio.run(run(settings, kubeconfig=kubeconfig, read_only=read_only, identity=identity))
    except (SettingsError, KubeError, DeposedError) as error:
        raise click.ClickException(str(error)) from error


def configure_logging(level: str) -> None:
    """Send the process' log to standard error; ``level`` is that of our own lines."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


if __name__ == "__main__":
    main()
