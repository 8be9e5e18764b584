"""The `gptoss` command. Sub-commands are imported when they are used, so nodes need no Kubernetes library."""

import importlib
from collections.abc import Mapping
from typing import Any

import click

from gptoss_cli.exit_codes import HELP, ExitCode

_COMMANDS: Mapping[str, tuple[str, str]] = {
    "fit": ("gptoss_cli.fit:fit", "Say whether a model fits on an accelerator, and what would."),
    "keys": ("gptoss_cli.keys:keys", "Make, list and revoke the keys that clients of the gateway use."),
    "local": ("gptoss_cli.local.command:local", "Run the whole stack on this machine."),
    "status": ("gptoss_cli.status:status", "Show deployments, their conditions and wake times."),
    "suspend": ("gptoss_cli.suspend:suspend", "Put a deployment to sleep until it is resumed."),
    "wake": ("gptoss_cli.wake:wake", "Wake a sleeping deployment, as a request would."),
    "weights": ("gptoss_cli.weights:weights", "Sign, verify, inspect and pull weights."),
}
"""Name → where the click command stands, and its line in `gptoss --help`."""


class _LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        try:
            command: Any = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("gptoss_"):
                raise
            raise click.ClickException(
                f"`gptoss {cmd_name}` needs the Python package {error.name!r}, which is not installed: "
                "install gptoss-operator with the extra that brings it (operator, gateway or serving)"
            ) from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(ExitCode.INTERRUPTED)


@click.group(
    cls=_LazyGroup, epilog=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="gptoss-operator", prog_name="gptoss")
def main() -> None:
    """Private, verified gpt-oss endpoints on Kubernetes."""


if __name__ == "__main__":
    main()
