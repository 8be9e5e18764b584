"""`gptoss local`: the whole product on this machine, as `make demo` runs it."""

import json
import signal
import sys
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gptoss_cli.exit_codes import ExitCode
from gptoss_cli.local.conversation import Reply, ask
from gptoss_cli.local.errors import LocalStackError
from gptoss_cli.local.stack import MODEL, Running, Stack
from gptoss_cli.local.steps import Steps
from gptoss_cli.local.tiny_model import QUESTION, TOOL_QUESTION


@click.group()
def local() -> None:
    """Run the whole product on this machine.

    Exit codes: 0 done, 1 failed (nothing is left running), 3 not running (status), 130 interrupted.
    """


@local.command()
def up() -> None:
    """Bring everything up, ask the model, and leave it running."""
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    stack = Stack()
    try:
        found = stack.running()
        if found:
            console.print("The stack is running already.")
        with Steps(console) as steps:
            running = stack.up(steps)
            try:
                with steps.step("asking through the gateway"):
                    replies = ask(
                        base_url=running.base_url,
                        api_key=running.api_key,
                        model=MODEL,
                        question=QUESTION,
                        tool_question=TOOL_QUESTION,
                    )
            except BaseException:
                if not found:
                    stack.down()
                raise
    except KeyboardInterrupt:
        console.print("[red]Interrupted.[/] Nothing was left running.")
        sys.exit(ExitCode.INTERRUPTED)
    except LocalStackError as error:
        _fail(console, error)
    _print_replies(console, replies)
    _print_next(console, running)


@local.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(*, as_json: bool) -> None:
    """Say what runs and how to talk to it. Exit code 3 if the stack is not up."""
    stack = Stack()
    running = stack.running()
    records = stack.programs.records()
    if as_json:
        programs = {
            record.name: {"pid": record.program.pid if record.program else None, "restarts": record.restarts}
            for record in records
            if record.alive()
        }
        address = {"baseURL": running.base_url, "kubeconfig": running.kubeconfig} if running else None
        click.echo(json.dumps({"running": running is not None, "address": address, "programs": programs}))
    else:
        console = Console()
        table = Table("program", "process", "restarts", box=None)
        for record in records:
            pid = str(record.program.pid) if record.program and record.alive() else "ended"
            table.add_row(record.name, pid, str(record.restarts))
        console.print(table if records else "Nothing is running.")
        console.print(f"\nlogs: {stack.programs.folder}", highlight=False, soft_wrap=True)
        if running:
            _print_next(console, running)
    sys.exit(ExitCode.OK if running else ExitCode.NEGATIVE)


@local.command()
def down() -> None:
    """End exactly what `up` started, and remove its data. What was built and trained stays in the cache."""
    console = Console()
    try:
        with console.status("stopping"):
            ended = Stack().down()
    except LocalStackError as error:
        _fail(console, error)
    console.print("Ended " + ", ".join(record.name for record in ended) if ended else "Nothing was running.")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _fail(console: Console, error: LocalStackError) -> NoReturn:
    console.print(Text(str(error), style="red"))
    sys.exit(ExitCode.FAILED)


def _print_replies(console: Console, replies: list[Reply]) -> None:
    for reply in replies:
        times = f"{reply.total:.2f} s" + (f", first token after {reply.first:.2f} s" if reply.first else "")
        lines = [f"[bold]{reply.question}[/]"]
        lines += [f"[dim]reasoning:[/] {reply.reasoning}"] if reply.reasoning else []
        lines += [reply.answer]
        console.print(Panel("\n".join(lines), title=f"{reply.what} · {times}", title_align="left"))


def _print_next(console: Console, running: Running) -> None:
    """Print commands that can be pasted as they are: no wrapping, no markup."""
    lines = f"""
The stack is up. Go on with:

  export KUBECONFIG={running.kubeconfig}
  export OPENAI_BASE_URL={running.base_url} OPENAI_API_KEY=$(cat {running.api_key_file})
  alias kubectl={running.kubectl}

  kubectl get gptoss
  kubectl explain gptoss.spec
  curl -s $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'
  .venv/bin/python -c 'import openai; print(openai.OpenAI().responses.create(
    model="{MODEL}", input="{QUESTION}").output_text)'

  metrics   {running.metrics_url}
  status    make demo-status
  end it    make demo-down
"""
    console.print(lines, markup=False, highlight=False, soft_wrap=True)
