"""``python -m gptoss_gateway --settings gateway.yaml``: starts a gateway process."""

import asyncio
from pathlib import Path

import click
import uvloop

from gptoss_gateway import crew, logs
from gptoss_gateway.errors import SettingsError
from gptoss_gateway.process import run
from gptoss_gateway.settings import GatewaySettings
from gptoss_kube.errors import KubeError


@click.command()
@click.option(
    "--settings", "settings_file", type=click.Path(path_type=Path), required=True, help="Settings file (YAML)."
)
@click.option("--kubeconfig", type=click.Path(path_type=Path), help="Kubeconfig; without it the pod's own account.")
@click.option("--allow-anonymous", is_flag=True, help="Let everybody in, on a loopback address and without keysFile.")
@click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), default="INFO")
def main(settings_file: Path, kubeconfig: Path | None, log_level: str, *, allow_anonymous: bool) -> None:
    """Offer every GptOssDeployment as an OpenAI model, awake or asleep."""
    logs.configure(log_level)
    try:
        settings = GatewaySettings.load(settings_file, allow_anonymous=allow_anonymous)
        if settings.workers > 1:
            asyncio.run(crew.run(settings, kubeconfig=kubeconfig, log_level=log_level))
            return
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings, kubeconfig=kubeconfig))
    except (SettingsError, KubeError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
