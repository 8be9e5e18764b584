"""The frozen, camelCase pydantic model that every object of the API derives from, and CEL's shorthand."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Schema = dict[str, Any]
"""Extra keys for a field's or class' OpenAPI schema."""

INT32: Schema = {"format": "int32"}
INT64: Schema = {"format": "int64"}
DATE_TIME: Schema = {"format": "date-time"}


class ApiModel(BaseModel):
    """A value of a custom resource: immutable, camelCase on the wire.

    Unknown fields are dropped: the API server is the one who refuses them, and an operator that is
    older than the installed schema must go on reading objects that carry newer defaults.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class StrictModel(BaseModel):
    """A value of a settings file or an application's arguments: unknown fields are refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


def cel(rule: str, message: str, **more: str) -> Schema:
    """Return the schema keys for one CEL rule; ``more`` may carry fieldPath, reason or messageExpression."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message, **more}]}


def rules(*schemas: Schema) -> Schema:
    """Merge schema keys, joining their CEL rules in order."""
    merged: Schema = {}
    validations: list[Mapping[str, str]] = []
    for schema in schemas:
        validations += schema.get("x-kubernetes-validations", [])
        merged |= schema
    return merged | {"x-kubernetes-validations": validations}


Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""A DNS-1123 label."""

Digest = Annotated[str, Field(min_length=71, max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]
"""``sha256:`` and 64 lower-case hexadecimal digits."""
