"""The engine arguments that a manifest may set beyond the named fields, with their types.

Exact names only. What is absent is absent on purpose: nothing that names a path, module, plugin,
tokenizer, template, second model or endpoint may come from a tenant.
"""

import json
from typing import Annotated, Literal

from pydantic import Field

from gptoss_api.model import Schema, cel, rules

Kind = Literal["integer", "boolean"]

PERMITTED: dict[str, Kind] = {
    "async-scheduling": "boolean",
    "block-size": "integer",
    "disable-custom-all-reduce": "boolean",
    "enable-chunked-prefill": "boolean",
    "enable-prefix-caching": "boolean",
    "enforce-eager": "boolean",
    "max-logprobs": "integer",
    "max-num-batched-tokens": "integer",
    "seed": "integer",
    "stream-interval": "integer",
}
"""Argument → type. Source: vLLM's AsyncEngineArgs (checked against the installed vLLM by a test)."""

ExtraArguments = dict[Annotated[str, Field(max_length=64)], int | Annotated[str, Field(max_length=64)]]


def _keys(kind: Kind | None = None) -> str:
    return json.dumps([name for name, of in PERMITTED.items() if kind in (None, of)]).replace('"', "'")


EXTRA_ARGUMENTS_SCHEMA: Schema = rules(
    {"maxProperties": len(PERMITTED)},
    cel(
        f"self.all(k, k in {_keys()})",
        "spec.engine.extraArgs may only hold " + ", ".join(PERMITTED) + ": remove the others",
    ),
    cel(
        f"self.all(k, !(k in {_keys('integer')}) || type(self[k]) == int)",
        "spec.engine.extraArgs: "
        + ", ".join(n for n, k in PERMITTED.items() if k == "integer")
        + " take whole numbers, without quotes",
    ),
    cel(
        f"self.all(k, !(k in {_keys('boolean')}) || (type(self[k]) == string && self[k] in ['true', 'false']))",
        "spec.engine.extraArgs: "
        + ", ".join(n for n, k in PERMITTED.items() if k == "boolean")
        + ' take "true" or "false", in quotes',
    ),
)


def typed(arguments: ExtraArguments) -> dict[str, int | bool]:
    """Return vLLM's keyword arguments (snake case, typed) for a manifest's ``extraArgs``.

    Raises:
        ValueError: a name that is not permitted or a value of the wrong type; the message names both.
    """
    return {name.replace("-", "_"): _typed(name, value) for name, value in sorted(arguments.items())}


def _typed(name: str, value: int | str) -> int | bool:
    kind = PERMITTED.get(name)
    if kind is None:
        raise ValueError(f"spec.engine.extraArgs.{name} is not permitted: use one of {', '.join(PERMITTED)}")
    if kind == "boolean" and value in ("true", "false"):
        return value == "true"
    if kind == "integer" and isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"spec.engine.extraArgs.{name}: {value!r} is not of type {kind}")
