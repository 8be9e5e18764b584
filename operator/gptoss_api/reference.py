"""Generates the API reference for people from the same schemas as the CRDs.

``python -m gptoss_api.reference --write FILE`` writes it, ``--check FILE`` compares.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from gptoss_api.conditions import ConditionType, Reason, TrustReason
from gptoss_api.crd import crds
from gptoss_api.model import Schema
from gptoss_api.names import API_VERSION, PAUSED_ANNOTATION, RETRY_ANNOTATION, WAKE_ANNOTATION

_HEADER = f"""# API reference: `{API_VERSION}`

Generated from the models by `make generate`; do not edit. `kubectl explain gptoss.spec` prints the
same texts. Additive changes only; unknown fields are refused by kubectl's strict validation.
"""

_ANNOTATIONS = f"""
## Annotations

| annotation | effect |
|---|---|
| `{RETRY_ANNOTATION}` | Any new value asks for another start of a deployment that failed. |
| `{WAKE_ANNOTATION}` | Any new value counts as one request for the model; `gptoss wake` sets it. |
| `{PAUSED_ANNOTATION}` | `true` stops all of the operator's writes for this object, except to its status. |
"""


def rendered() -> str:
    """Return the reference as Markdown."""
    parts = [_HEADER]
    for crd in crds().values():
        root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        names = crd["spec"]["names"]
        parts.append(f"\n## {names['kind']}\n\n{root['description']} {crd['spec']['scope']}")
        parts.append(f", `{names['plural']}`" + "".join(f", short `{n}`" for n in names.get("shortNames", [])) + ".\n")
        parts += [f"\n- {rule['message']}\n" for rule in root.get("x-kubernetes-validations", [])]
        for section in ("spec", "status"):
            if section in root["properties"]:
                parts.append(f"\n### {section}\n\n| field | type | default | meaning |\n|---|---|---|---|\n")
                parts += [row + "\n" for row in _rows(section, root["properties"][section])]
    parts.append(_ANNOTATIONS)
    parts.append("\n## Conditions and reasons\n\n| | |\n|---|---|\n")
    parts.append(f"| types | {_names(ConditionType)} |\n")
    parts.append(f"| reasons | {_names(Reason)} |\n")
    parts.append(f"| reasons of untrusted weights | {_names(TrustReason)} |\n")
    return "".join(parts)


def main() -> int:
    """Write or check the file; 1 when ``--check`` finds that it is not current."""
    parser = argparse.ArgumentParser(prog="python -m gptoss_api.reference", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE")
    action.add_argument("--check", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.write:
        options.write.write_text(rendered())
        return 0
    if options.check.exists() and options.check.read_text() == rendered():
        return 0
    sys.stderr.write(f"{options.check} is not current; run `make generate`\n")
    return 1


def _names(of: type[ConditionType] | type[Reason] | type[TrustReason]) -> str:
    return ", ".join(f"`{member.value}`" for member in of)


def _rows(path: str, schema: Schema) -> Iterator[str]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        where = f"{path}.{name}"
        default = "required" if name in required else _default(field)
        yield f"| `{where}` | {_type(field)} | {default} | {_meaning(field)} |"
        yield from _rows(where, field)
        if "items" in field:
            yield from _rows(f"{where}[]", field["items"])


def _default(field: Schema) -> str:
    if "default" not in field or field.get("type") == "object":
        return ""
    return f"`{json.dumps(field['default'])}`"


def _type(field: Schema) -> str:
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    kind = field["type"]
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"map of {_type(field['additionalProperties'])}"
    if kind in ("integer", "number") and "minimum" in field:
        return f"{kind}, {field['minimum']} to {field.get('maximum', '∞')}"
    return str(kind)


def _meaning(field: Schema) -> str:
    text = " ".join(
        [field.get("description", ""), *(f"*{r['message']}.*" for r in field.get("x-kubernetes-validations", []))]
    )
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    raise SystemExit(main())
