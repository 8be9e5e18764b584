"""Generates the CRDs from the models: structural schemas with CEL rules, bounds and full defaults.

``python -m gptoss_api.crd --write DIR`` writes one file per kind, ``--check DIR`` compares. The
files hold JSON, which is YAML too: PyYAML would write ``n`` without quotes, and the API server reads
that as a boolean.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, NoDefault
from pydantic_core import core_schema

from gptoss_api.deployment import NAME_RULE, GptOssDeploymentSpec
from gptoss_api.deployment_status import GptOssDeploymentStatus
from gptoss_api.model import ApiModel, Schema
from gptoss_api.names import GROUP, VERSION
from gptoss_api.policy import WeightTrustPolicySpec, WeightTrustPolicyStatus
from gptoss_api.report import GatewayReportSpec

_DROPPED = {"title", "discriminator", "$defs", "examples", "propertyNames"}


def crds() -> dict[str, dict[str, Any]]:
    """Return file name → CustomResourceDefinition."""
    deployment = _crd(
        kind="GptOssDeployment",
        plural="gptossdeployments",
        description="A private, verified gpt-oss endpoint that sleeps when nobody asks.",
        spec=GptOssDeploymentSpec,
        status=GptOssDeploymentStatus,
        root=NAME_RULE,
        short_names=["gptoss"],
        categories=["all", "ai"],
        columns=[
            _column("Model", ".spec.model.name"),
            _column("State", ".status.state"),
            _column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            _column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
            _column("Replicas", ".status.replicas.ready", kind="integer"),
            _column("Pull", ".status.pull.progress"),
            _column("URL", ".status.endpoint.url", priority=1),
            _column("Digest", ".status.weights.manifestDigest", priority=1),
            _column("Authority", ".status.weights.authority", priority=1),
            _column("Age", ".metadata.creationTimestamp", kind="date"),
        ],
    )
    policy = _crd(
        kind="WeightTrustPolicy",
        plural="weighttrustpolicies",
        description="Whose signatures are accepted, for which models, from which sources.",
        spec=WeightTrustPolicySpec,
        status=WeightTrustPolicyStatus,
        namespaced=False,
        short_names=["wtp"],
        categories=["ai"],
        columns=[
            _column("Default", ".spec.default", kind="boolean"),
            _column("Authorities", ".spec.authorities[*].name"),
            _column("Age", ".metadata.creationTimestamp", kind="date"),
        ],
    )
    report = _crd(
        kind="GatewayReport",
        plural="gatewayreports",
        description="What one gateway tells the operator about demand. Gateways write it; nobody else should.",
        spec=GatewayReportSpec,
        columns=[
            _column("Heartbeat", ".spec.heartbeat", kind="integer"),
            _column("Renewed", ".spec.renewedAt"),
            _column("Age", ".metadata.creationTimestamp", kind="date"),
        ],
    )
    return {f"{crd['spec']['names']['plural']}.yaml": crd for crd in (deployment, policy, report)}


def rendered() -> dict[str, str]:
    """Return file name → text."""
    return {name: json.dumps(crd, indent=2, ensure_ascii=False) + "\n" for name, crd in crds().items()}


def structural_schema(model: type[ApiModel]) -> Schema:
    """Return a model's schema in the structural form that the API server asks for.

    Raises:
        ValueError: a union that a structural schema cannot express.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_WithFactoryDefaults)
    return _structural(schema, schema.get("$defs", {}), model.__name__)


class _WithFactoryDefaults(GenerateJsonSchema):
    """Writes out defaults in full, those of a ``default_factory`` too.

    The API server does not apply nested defaults when it checks a default against CEL rules, so a
    bare ``{}`` would be refused.
    """

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        """Return a field's default as it stands on the wire; empty ones are left out."""
        factory = schema.get("default_factory")
        value = factory() if factory else super().get_default_value(schema)  # type: ignore[call-arg]
        if isinstance(value, ApiModel):
            value = {
                k: v
                for k, v in value.model_dump(by_alias=True, exclude_none=True, mode="json").items()
                if v not in ({}, [])
            }
        return NoDefault if value in ({}, (), []) else value


def main() -> int:
    """Write or check the files; 1 when ``--check`` finds one that is not current."""
    parser = argparse.ArgumentParser(prog="python -m gptoss_api.crd", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="DIR")
    action.add_argument("--check", type=Path, metavar="DIR")
    options = parser.parse_args()
    if options.write:
        for name, text in rendered().items():
            (options.write / name).write_text(text)
        return 0
    stale = [n for n, text in rendered().items() if not _holds(options.check / n, text)]
    if stale:
        sys.stderr.write(f"not current in {options.check}: {', '.join(stale)}; run `make generate`\n")
    return 1 if stale else 0


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def _crd(
    *,
    kind: str,
    plural: str,
    description: str,
    spec: type[ApiModel],
    status: type[ApiModel] | None = None,
    root: Schema | None = None,
    namespaced: bool = True,
    short_names: list[str] | None = None,
    categories: list[str] | None = None,
    columns: list[Schema],
) -> dict[str, Any]:
    properties: Schema = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": structural_schema(spec),
    }
    if status:
        properties["status"] = structural_schema(status)
    names: Schema = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    if short_names:
        names["shortNames"] = short_names
    if categories:
        names["categories"] = categories
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": description,
                "required": ["spec"],
                "properties": properties,
                **(root or {}),
            }
        },
        "additionalPrinterColumns": columns,
    }
    if status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if namespaced else "Cluster",
            "names": names,
            "versions": [version],
        },
    }


def _column(name: str, path: str, *, kind: str = "string", priority: int = 0) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    return column | ({"priority": priority} if priority else {})


def _structural(schema: Schema, definitions: dict[str, Schema], where: str) -> Schema:
    if "$ref" in schema:
        return _structural(_referenced(schema, definitions), definitions, where)
    if "anyOf" in schema:
        return _structural(_without_null(schema, where), definitions, where)
    result: Schema = {}
    for key, value in schema.items():
        if key in _DROPPED or (key == "additionalProperties" and value is False):
            continue
        if key == "const":
            result["enum"] = [value]
        elif key in ("exclusiveMinimum", "exclusiveMaximum"):
            result |= {key.replace("exclusiveM", "m"): value, key: True}
        elif key == "properties":
            result[key] = {n: _structural(p, definitions, f"{where}.{n}") for n, p in value.items()}
        elif key == "items":
            result[key] = _structural(value, definitions, f"{where}[]")
        elif key == "additionalProperties" and isinstance(value, dict):
            result[key] = _structural(value, definitions, f"{where}{{}}")
        else:
            result[key] = value
    return result


def _referenced(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Inline a reference. What stands beside it wins; rules of class and field are joined."""
    base = dict(definitions[schema["$ref"].rsplit("/", 1)[1]])
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    validations = base.get("x-kubernetes-validations", []) + beside.get("x-kubernetes-validations", [])
    merged: Schema = base | beside
    return merged | ({"x-kubernetes-validations": validations} if validations else {})


def _without_null(schema: Schema, where: str) -> Schema:
    """Turn ``X | None`` into an optional X, and ``int | str`` into Kubernetes' int-or-string."""
    alternatives = [a for a in schema["anyOf"] if a.get("type") != "null"]
    beside = {key: value for key, value in schema.items() if key != "anyOf"}
    if beside.get("default", "unset") is None:
        del beside["default"]
    if {a.get("type") for a in alternatives} == {"integer", "string"}:
        return beside | {"x-kubernetes-int-or-string": True}
    if len(alternatives) != 1:
        raise ValueError(f"{where}: a structural schema cannot express this union")
    merged: Schema = alternatives[0] | beside
    return merged


if __name__ == "__main__":
    raise SystemExit(main())
