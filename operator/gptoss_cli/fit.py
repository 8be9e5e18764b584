"""`gptoss fit`: does a model fit on an accelerator, before one is asked for? Needs no cluster."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptoss_api.architecture import architecture_of
from gptoss_api.deployment import GptOssDeploymentSpec
from gptoss_api.engine import EngineConfig, resolve
from gptoss_api.fit import Fit, Load, Verdict, assess, load_of
from gptoss_api.hardware import GIB, Accelerator, accelerator_named, accelerators
from gptoss_api.profiles import profile_for
from gptoss_cli.exit_codes import HELP, ExitCode
from gptoss_cli.files import read_documents

_COLOURS = {
    Verdict.FITS: "green",
    Verdict.UNVERIFIED: "yellow",
    Verdict.FITS_WITH_REDUCED_CONTEXT: "yellow",
    Verdict.DOES_NOT_FIT: "red",
}
_YES = {Verdict.FITS, Verdict.UNVERIFIED}


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One deployment on one kind of accelerator."""

    name: str
    accelerator: Accelerator
    engine: EngineConfig
    load: Load
    fit: Fit


@click.command(epilog=HELP)
@click.option("--model", type=click.Choice(["gpt-oss-20b", "gpt-oss-120b"]), help="Model to look at.")
@click.option(
    "-f",
    "--filename",
    "manifest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Manifest; every GptOssDeployment in it is looked at, with its own settings.",
)
@click.option("--gpu", "accelerator", help="Accelerator, such as H100-80GB; `--list` names them all.")
@click.option("--memory", type=click.FloatRange(min=1), help="GiB of each accelerator, where it differs or for a CPU.")
@click.option("--tensor", type=int, help="Accelerators that share each layer.  [default: 1]")
@click.option("--max-model-len", type=click.IntRange(min=256), help="Context in tokens.  [default: the profile's]")
@click.option("--max-num-seqs", type=click.IntRange(min=1), help="Sequences at once.  [default: the profile's]")
@click.option("--gpu-memory-utilization", type=float, help="Share of memory for the engine.  [default: the profile's]")
@click.option("--list", "listing", is_flag=True, help="List the accelerators that are known.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object for --model, else a list.")
def fit(
    model: str | None,
    manifest: Path | None,
    accelerator: str | None,
    memory: float | None,
    *,
    listing: bool,
    as_json: bool,
    **settings: int | float | None,
) -> None:
    """Say whether a model fits on an accelerator, and if not, what would.

    The exit code is 0 if it fits and 3 if it doesn't with the context that is asked for. Bytes are
    estimated, rather too high than too low; vLLM itself measures when it starts.
    """
    if listing:
        _list(as_json=as_json)
        return
    if (model is None) == (manifest is None):
        raise click.UsageError("give either --model or -f MANIFEST (--list shows the accelerators that are known)")
    if manifest is not None and any(value is not None for value in settings.values()):
        raise click.UsageError("settings come from the manifest: leave --tensor, --max-… and --gpu-… away with -f")
    card = _accelerator(accelerator, memory)
    specs = _of_options(str(model), settings) if manifest is None else _of_manifest(manifest)
    answers = [_answer(name, spec, card) for name, spec in specs]
    if as_json:
        documents = [_document(answer) for answer in answers]
        click.echo(json.dumps(documents[0] if manifest is None else documents, indent=2))
    else:
        for answer in answers:
            _print(answer)
    if any(answer.fit.verdict not in _YES for answer in answers):
        sys.exit(ExitCode.NEGATIVE)


def _accelerator(name: str | None, memory: float | None) -> Accelerator:
    if name is None:
        raise click.UsageError("name the accelerator with --gpu (--list shows those that are known)")
    try:
        found = accelerator_named(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--gpu") from None
    if memory is not None:
        found = found.with_memory(int(memory * GIB))
    if found.memory_bytes == 0:
        raise click.UsageError(f"give the memory of {found.name} in GiB with --memory")
    return found


def _of_options(model: str, settings: Mapping[str, int | float | None]) -> list[tuple[str, GptOssDeploymentSpec]]:
    engine = {
        name: settings[name]
        for name in ("max_model_len", "max_num_seqs", "gpu_memory_utilization")
        if settings[name] is not None
    }
    parallelism = {} if settings["tensor"] is None else {"tensor": settings["tensor"]}
    # Where the weights lie makes no difference to their size.
    written = {"model": {"name": model, "uri": f"s3://models/{model}"}, "engine": engine, "parallelism": parallelism}
    try:
        return [(model, GptOssDeploymentSpec.model_validate(written))]
    except ValidationError as error:
        raise click.UsageError(_first(error)) from None


def _of_manifest(path: Path) -> list[tuple[str, GptOssDeploymentSpec]]:
    found = list(_deployments(path, read_documents(path)))
    if not found:
        raise click.ClickException(f"{path} holds no GptOssDeployment")
    return found


def _deployments(path: Path, documents: list[Any]) -> Iterator[tuple[str, GptOssDeploymentSpec]]:
    for document in documents:
        if not isinstance(document, dict) or document.get("kind") != "GptOssDeployment":
            continue
        metadata = document.get("metadata")
        if not isinstance(metadata, dict) or not metadata.get("name"):
            raise click.ClickException(f"{path}: a GptOssDeployment in it has no metadata.name: give it one")
        name = "/".join(str(metadata[part]) for part in ("namespace", "name") if metadata.get(part))
        try:
            yield name, GptOssDeploymentSpec.model_validate(document.get("spec"), extra="forbid")
        except ValidationError as error:
            raise click.ClickException(f"{path}: {name}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(('spec', *map(str, fault['loc'])))}: {fault['msg']}"


def _answer(name: str, spec: GptOssDeploymentSpec, card: Accelerator) -> _Answer:
    architecture = architecture_of(spec.model.name)
    if architecture is None:
        raise click.ClickException(
            f"{name}: spec.model.name {spec.model.name} tells no sizes; "
            "only gpt-oss-20b and gpt-oss-120b can be looked at"
        )
    try:
        engine = resolve(spec, profile_for(spec.model.name), card)
    except ValueError as error:
        raise click.ClickException(f"{name}: {error}") from error
    load = load_of(engine.arguments, architecture, card)
    return _Answer(
        name=name,
        accelerator=card,
        engine=engine,
        load=load,
        fit=assess(architecture, card, load, others=accelerators()),
    )


def _document(answer: _Answer) -> dict[str, Any]:
    found = answer.fit.estimate
    return {
        "name": answer.name,
        "verdict": answer.fit.verdict,
        "message": answer.fit.message,
        "accelerator": {
            "name": answer.accelerator.name,
            "family": answer.accelerator.family,
            "capability": answer.accelerator.capability,
            "verified": answer.accelerator.verified,
        },
        "tensor": answer.load.tensor,
        "maxModelLen": answer.load.max_model_len,
        "maxNumSeqs": answer.load.max_num_seqs,
        "largestContext": found.largest_context if found is not None else 0,
        "fullSequences": round(found.full_sequences, 2) if found is not None else 0,
        "bytesPerAccelerator": {
            "memory": found.memory,
            "budget": found.budget,
            "weights": found.weights,
            "working": found.working,
            "graphs": found.graphs,
            "kvAvailable": found.kv_available,
            "kvSequence": found.kv_sequence,
            "kvAllSequences": found.kv_all,
        }
        if found is not None
        else None,
        "profile": answer.engine.profile,
        "customized": list(answer.engine.customized),
        "environment": answer.engine.environment,
        "engine": answer.engine.line,
    }


def _print(answer: _Answer) -> None:
    console = Console()
    card, found, load = answer.accelerator, answer.fit.estimate, answer.load
    title = Text.assemble(
        (f"{answer.name} on {load.tensor} x {card.name}: ", "bold"),
        (str(answer.fit.verdict), _COLOURS[answer.fit.verdict]),
    )
    console.print(title)
    if found is not None:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column()
        table.add_column(justify="right")
        table.add_row("Memory of each accelerator", _gib(found.memory))
        table.add_row(f"  the engine may take ({load.utilization:g})", _gib(found.budget))
        table.add_row("  weights", _gib(found.weights))
        table.add_row("  activations, sampler, libraries", _gib(found.working))
        table.add_row("  CUDA graphs", _gib(found.graphs))
        table.add_row("  left for the KV cache", _gib(found.kv_available))
        table.add_row(f"KV cache of one sequence of {load.max_model_len} tokens", _gib(found.kv_sequence))
        table.add_row(f"  of all {load.max_num_seqs} sequences at that length", _gib(found.kv_all))
        table.add_row("Sequences of that length at once", f"{found.full_sequences:.1f}")
        table.add_row("Largest context in tokens", str(found.largest_context))
        console.print(table)
    console.print(answer.fit.message, soft_wrap=True, highlight=False)
    customized = f" (Customized: {', '.join(answer.engine.customized)})" if answer.engine.customized else ""
    console.print(Text(f"{answer.engine.profile}{customized}: {answer.engine.line}", style="dim"), soft_wrap=True)
    for name, value in answer.engine.environment.items():
        console.print(Text(f"{name}={value}", style="dim"), soft_wrap=True)


def _list(*, as_json: bool) -> None:
    if as_json:
        documents = [
            {
                "name": each.name,
                "family": each.family,
                "capability": each.capability,
                "memoryBytes": each.memory_bytes,
                "verified": each.verified,
                "source": each.source,
            }
            for each in accelerators()
        ]
        click.echo(json.dumps(documents, indent=2))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("NAME", "FAMILY", "CAPABILITY", "MEMORY", "VERIFIED"):
        table.add_column(column)
    for each in accelerators():
        memory = _gib(each.memory_bytes) if each.memory_bytes else "--memory"
        table.add_row(each.name, each.family, each.capability, memory, "yes" if each.verified else "no")
    Console().print(table)


def _gib(value: float) -> str:
    return f"{value / GIB:.1f} GiB"
