"""Reads the hostile inputs beside this file, and builds them from what is good.

Each file is a list of cases that people can read: what is wrong, which reason is expected, and what the
message has to say. ``word*N`` stands for text that is too long to write down.
"""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).parent
_REPEATED = re.compile(r"(\S+)\*(\d+)(\n?)")
_LONG = {
    "deep": lambda count: "[" * count,
    "digits": lambda count: "[" + "9" * count + "]",
    "quotes": lambda count: '"' + '\\"' * count,
    "spaces": lambda count: " " * count,
    "long": lambda count: "s3://models/" + "x" * count,
    "many": lambda count: [{}] * count,
}


@dataclass(frozen=True)
class Case:
    """One hostile input: the file that lists it, its name, and what the file says."""

    kind: str
    name: str
    says: str
    fields: dict[str, Any]

    @property
    def reason(self) -> str:
        return self.fields.get("reason", "ForbiddenContent")

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"


def cases(kind: str) -> list[Case]:
    found = yaml.safe_load((_HERE / f"{kind}.yaml").read_text(encoding="utf-8"))
    return [Case(kind, fields["case"], fields["says"], fields) for fields in found]


def long(value: Any) -> Any:
    """Write out ``word*N``; anything else stays."""
    repeated = _REPEATED.fullmatch(value) if isinstance(value, str) else None
    if repeated is None:
        return value
    word, count, end = repeated[1], int(repeated[2]), repeated[3]
    return _LONG[word](count) if word in _LONG else word * count + end


def changed(good: Any, case: Case) -> Any:
    """A good document with the case's one change."""
    document = copy.deepcopy(good)
    for path, value in case.fields.get("set", {}).items():
        holder, last = _reach(document, path)
        holder[last] = long(value)
    if "remove" in case.fields:
        holder, last = _reach(document, case.fields["remove"])
        del holder[last]
    return document


def _reach(document: Any, path: str) -> tuple[Any, Any]:
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in parents:
        document = document[part]
    return document, last
