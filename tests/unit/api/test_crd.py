"""The generated CRDs: current, structural, bounded, documented. What the API server makes of them: tests/apiserver."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from gptoss_api import reference
from gptoss_api.crd import crds, rendered, structural_schema
from gptoss_api.deployment import GptOssDeploymentSpec
from gptoss_api.model import ApiModel

CRDS = Path(__file__).parents[3] / "crds"


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    for crd in crds().values():
        root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for part in ("spec", "status"):
            if part in root["properties"]:
                yield from walk(f"{crd['spec']['names']['kind']}.{part}", root["properties"][part])


def walk(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(f"{path}.{name}", child)
    if "items" in schema:
        yield from walk(f"{path}[]", schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(f"{path}{{}}", schema["additionalProperties"])


def test_the_files_in_crds_are_current() -> None:
    assert {path.name: path.read_text() for path in CRDS.glob("*.yaml")} == rendered()


@pytest.mark.parametrize(("path", "schema"), list(schemas()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_field_is_bounded_and_documented(path, schema) -> None:
    if not path.endswith(("[]", "{}")):
        assert schema.get("description"), f"{path} has no description"
    if schema.get("type") == "string" and "enum" not in schema and "format" not in schema:
        assert "maxLength" in schema, f"{path} is an unbounded string"
    if schema.get("type") == "array":
        assert "maxItems" in schema, f"{path} is an unbounded list"
    if "additionalProperties" in schema:
        assert "maxProperties" in schema, f"{path} is an unbounded map"
    assert not {"$ref", "anyOf", "oneOf", "title"} & schema.keys(), f"{path} is not structural"


def test_defaults_are_written_out_in_full() -> None:
    properties = structural_schema(GptOssDeploymentSpec)["properties"]
    assert properties["scaling"]["default"]["maxReplicas"] == 1
    assert properties["rolloutStrategy"]["default"] == {"type": "BlueGreen"}


def test_a_union_that_no_structural_schema_can_express_is_refused() -> None:
    class Either(ApiModel):
        value: bool | list[str] = Field(description="x")

    with pytest.raises(ValueError, match=r"Either\.value"):
        structural_schema(Either)


def test_the_api_reference_is_current() -> None:
    assert (CRDS.parent / "docs" / "api.md").read_text() == reference.rendered()
