"""Which identity of a cloud fetches the weights of which namespaces, as an administrator decides.

The identity is a ServiceAccount's: Kubernetes signs a token for it that only the cloud's token service takes, and
only the container that fetches weights sees it. No custom resource names an account.
"""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from gptoss_api.model import Name, StrictModel

AWS_AUDIENCE = "sts.amazonaws.com"
AZURE_AUDIENCE = "api://AzureADTokenExchange"


def _for_no_api_server(audience: str) -> str:
    if audience.removeprefix("https://").startswith("kubernetes.default"):
        raise ValueError(
            f"audience {audience} makes it a token for Kubernetes' own API, which no pod of an engine gets: give the "
            "one that the cloud's token service asks for"
        )
    return audience


Audience = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^\S+$"), AfterValidator(_for_no_api_server)]


class AwsIdentity(StrictModel):
    """A role of AWS IAM that trusts the cluster's issuer, or one of another store's token service (STS)."""

    role_arn: Annotated[
        str,
        Field(alias="roleARN", max_length=2048, pattern=r"^arn:[a-z0-9-]+:iam:[a-z0-9-]*:[a-z0-9-]*:role/\S+$"),
    ] = Field(description="The role to take on.")
    audience: Audience = Field(default=AWS_AUDIENCE, description="Audience that the role's trust policy asks for.")
    sts_endpoint: Annotated[str, Field(max_length=256, pattern=r"^https?://[^\s/]+$")] | None = Field(
        default=None,
        description="URL of the token service; none is AWS's own of weightSources.s3.region. It answers with keys: "
        "use https:// wherever others may listen.",
    )


_Id = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-zA-Z][0-9a-zA-Z.-]*$")]


class AzureIdentity(StrictModel):
    """An application or managed identity of Entra ID with a federated credential for the cluster's issuer."""

    client_id: Annotated[_Id, Field(alias="clientID", description="Its client id.")]
    tenant_id: Annotated[_Id, Field(alias="tenantID", description="Its tenant.")]
    audience: Audience = Field(default=AZURE_AUDIENCE, description="Audience that its federated credential asks for.")
    authority_host: Annotated[str, Field(max_length=256, pattern=r"^https://[^\s/]+/?$")] | None = Field(
        default=None, description="URL of Entra ID; none is the public cloud's."
    )


class WorkloadIdentity(StrictModel):
    """What deployments of some namespaces fetch weights as."""

    namespaces: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        description="Namespaces; `*` is any. The first entry that fits counts."
    )
    service_account_name: Name = Field(
        description="ServiceAccount in each of these namespaces, which an administrator makes. It needs no rights."
    )
    aws: AwsIdentity | None = Field(default=None, description="For s3:// weights, in the place of the Secret's keys.")
    azure: AzureIdentity | None = Field(default=None, description="For az:// weights, likewise.")

    @model_validator(mode="after")
    def _is_of_some_use(self) -> Self:
        if not self.namespaces:
            raise ValueError("kubeRay.workloadIdentities[].namespaces is empty: name some, or '*' for all")
        if self.aws is None and self.azure is None:
            raise ValueError("kubeRay.workloadIdentities[] names no cloud: add aws or azure")
        return self
