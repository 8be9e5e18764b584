"""What the gateway costs before a real engine: vLLM on this machine's CPU, asked directly and through the gateway.

The whole product as `make demo` brings it up, with the tiny gpt-oss; it is left as it was found. Directly is as the
gateway asks: Ray Serve's HAProxy and the replica behind it. Engine, Ray, clients and gateway share the machine, so what
the gateway's work takes from the engine shows as lost throughput. No bar: an engine on GPUs leaves CPUs to others.

    python -m benchmarks.real_engine [--seconds S] [--rounds N] [--concurrency N ...] [--tokens N]
"""

import argparse
import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop
import yaml
from rich.console import Console

from benchmarks.load import authorization, post_request
from benchmarks.stage import Way
from benchmarks.throughput import Row, in_turns, print_table
from gptoss_api.names import GATEWAY_TOKEN_HEADER, engine_model_id, route_prefix
from gptoss_cli.local.identity import Identity
from gptoss_cli.local.stack import GATEWAY, MODEL, Running, Stack
from gptoss_cli.local.steps import Steps

NAMESPACE = "default"
PATH = "/v1/completions"


def run(options: argparse.Namespace) -> int:
    """Ask both ways in turns and print the tables; 1 if an answer was lost."""
    lost = 0
    with _stack() as (stack, running):
        ways = _ways(stack, running, options.tokens)
        for workers in options.concurrency:
            rows = _asked(ways, workers, options)
            print(f"\n{workers} streams of {options.tokens} tokens, a real vLLM on this CPU")
            print_table(rows)
            lost += sum(row.failures for row in rows.values())
    return 1 if lost else 0


@contextmanager
def _stack() -> Iterator[tuple[Stack, Running]]:
    """Have the stack of `make demo`, which is ended again if it did not run before."""
    stack = Stack()
    found = stack.running()
    try:
        with Steps(Console()) as steps:
            running = found or stack.up(steps)
        yield stack, running
    finally:
        if found is None:
            stack.down()


def _ways(stack: Stack, running: Running, tokens: int) -> dict[Way, bytes]:
    """Return both ways, each with the question as it is put there."""
    identity = Identity(stack.folder / "identity")
    (ray,) = yaml.safe_load(identity.gateway_settings.read_text())["rayClusters"]
    record = stack.programs.record(GATEWAY)
    assert record is not None
    assert record.program is not None
    pid = record.program.pid
    direct = Way(name="direct", url=ray["serveURL"], path=route_prefix(NAMESPACE, MODEL) + PATH, pid=None)
    through = Way(name="gateway", url=running.base_url.removesuffix("/v1"), path=PATH, pid=pid)
    known = {GATEWAY_TOKEN_HEADER: identity.gateway_token.read_text()}
    engines = engine_model_id(NAMESPACE, MODEL, _uid(running))
    return {
        direct: post_request(direct.url, direct.path, known, _question(engines, tokens)),
        through: post_request(through.url, through.path, authorization(running.api_key), _question(MODEL, tokens)),
    }


def _question(model: str, tokens: int) -> dict[str, object]:
    """Return a question whose answer has exactly so many tokens, each an event."""
    exactly = {"prompt": "Hello", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    # As the gateway asks on its clients' behalf: the engine has the same to do both ways.
    return {"model": model, **exactly, "stream": True, "stream_options": {"include_usage": True}}


def _uid(running: Running) -> str:
    command = [running.kubectl, "--kubeconfig", running.kubeconfig, "get", "gptoss", MODEL, "--namespace", NAMESPACE]
    command += ["-o", "jsonpath={.metadata.uid}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def _asked(ways: dict[Way, bytes], workers: int, options: argparse.Namespace) -> dict[str, Row]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(in_turns(ways, workers=workers, seconds=options.seconds, rounds=options.rounds))


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15, help="of each round of each way (default 15)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds, the ways taking turns (default 4)")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8], help="streams at once (1 8)")
    parser.add_argument("--tokens", type=int, default=100, help="of each answer (default 100)")
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
