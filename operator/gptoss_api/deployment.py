"""GptOssDeployment: the specification that users write, its defaults, bounds and rules.

The rules stand here once: the CRD's schema, its CEL expressions and the API reference are
generated from these models (see ``crd.py``).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field

from gptoss_api.accelerator import AcceleratorRequest
from gptoss_api.cache import Cache
from gptoss_api.engine_arguments import EXTRA_ARGUMENTS_SCHEMA, ExtraArguments
from gptoss_api.model import INT32, ApiModel, Digest, Name, cel, rules
from gptoss_api.names import MAX_NAME_LENGTH
from gptoss_api.pod import Pod
from gptoss_api.scaling import Scaling


class Model(ApiModel):
    """Which weights to serve."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.revision) || self.uri.startsWith('hf://')",
                "spec.model.revision pins a commit of an hf:// source; remove it for s3://, az:// and file:// "
                "(pin the weights with spec.verification.manifestDigest instead)",
                fieldPath=".revision",
            ),
            cel(
                "has(self.revision) || !self.uri.startsWith('hf://')",
                "spec.model.revision is required with hf://: add the full id of the signed commit, 40 hexadecimal "
                "digits, for a branch can change between two files",
                fieldPath=".uri",
            ),
        )
    )

    name: Literal["gpt-oss-20b", "gpt-oss-120b", "custom"] = Field(
        description="Selects the profile of engine settings. It must equal the subject that the weights "
        "are signed for, unless verification.subject says otherwise.",
    )
    uri: Annotated[str, Field(min_length=6, max_length=1024)] = Field(
        description="Location of the weights: s3://bucket/prefix, az://container/prefix, hf://owner/name or "
        "file:///folder. The bundle model.sig lies beside them. The WeightTrustPolicy decides which "
        "prefixes are allowed.",
        json_schema_extra=cel(
            "self.matches('^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/?#@]+)*/?$') || "
            "self.matches('^az://[a-z0-9](-?[a-z0-9]){2,62}(/[^/?#@]*[^./?#@])*/?$') || "
            "self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}/?$') || "
            "self.matches('^file://(/[^/?#@]+)+/?$')",
            "spec.model.uri must be s3://bucket/prefix, az://container/prefix, hf://owner/name or "
            "file:///folder, without credentials, query, fragment or empty path segments",
        ),
    )
    revision: Annotated[str, Field(max_length=64)] | None = Field(
        default=None,
        description="Full commit id: required for an hf:// source, refused for any other.",
        json_schema_extra=cel(
            "self.matches('^[0-9a-f]{40}$')",
            "spec.model.revision must be a full commit id, 40 hexadecimal digits; replace the branch, tag or short id",
        ),
    )
    served_name: (
        Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$")] | None
    ) = Field(
        default=None,
        description="Name that clients ask for, by default the object's name. namespace/name always works too.",
    )


class PolicyRef(ApiModel):
    """Names a WeightTrustPolicy."""

    name: Name = Field(description="Name of a policy whose namespaceSelector selects this namespace.")


class Verification(ApiModel):
    """Narrows what the WeightTrustPolicy allows. It never widens it."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            "self.mode != 'Audit' || !has(self.authority)",
            "spec.verification.authority names who must have signed, and mode Audit waives the signer: "
            "remove one of the two",
            fieldPath=".authority",
        )
    )

    policy_ref: PolicyRef | None = Field(
        default=None,
        description="Policy to use instead of the one default policy that selects the namespace.",
    )
    manifest_digest: Digest | None = Field(
        default=None,
        description="Only weights whose signed manifest has this digest may run, "
        "as `gptoss weights inspect` prints it.",
    )
    subject: (
        Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._/]*[A-Za-z0-9])?$")]
        | None
    ) = Field(default=None, description="Subject that the weights must be signed for, by default model.name.")
    authority: Name | None = Field(
        default=None, description="Only this authority of the policy may have signed the weights."
    )
    mode: Literal["Enforce", "Audit"] = Field(
        default="Enforce",
        description="Audit waives the signer where the policy's allowAudit permits it. A model.sig is still needed, "
        "and every byte must match it; status, an event and a metric say that the signer was waived.",
    )


class Parallelism(ApiModel):
    """How one replica is spread over accelerators. More replicas are data parallelism."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            "!self.expert || self.tensor > 1",
            "spec.parallelism.expert spreads experts over the accelerators of tensor: set spec.parallelism.tensor to 2 "
            "or more, or remove expert",
            fieldPath=".expert",
        )
    )

    tensor: Annotated[int, Field(ge=1, le=8)] = Field(
        default=1,
        description="Accelerators of one node that share each layer: 1, 2, 4 or 8.",
        json_schema_extra=rules(INT32, cel("self in [1, 2, 4, 8]", "spec.parallelism.tensor must be 1, 2, 4 or 8")),
    )
    pipeline: Annotated[int, Field(ge=1, le=8)] = Field(
        default=1,
        description="Pods that share the layers, each with tensor accelerators; each may be on a node of its own. On "
        "KubeRay only.",
        json_schema_extra=INT32,
    )
    expert: bool = Field(
        default=False,
        description="Gives each accelerator of tensor whole experts instead of a part of every expert. Seldom faster "
        "with up to 8 accelerators: measure it.",
    )


class Engine(ApiModel):
    """Overrides of the profile's engine settings."""

    max_model_len: Annotated[int, Field(ge=256, le=131072)] | None = Field(
        default=None,
        description="Longest context in tokens, prompt and answer together; by default the profile's.",
        json_schema_extra=INT32,
    )
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="Sequences that one replica works on at once; by default the profile's.",
        json_schema_extra=INT32,
    )
    gpu_memory_utilization: Annotated[float, Field(ge=0.1, le=0.98)] | None = Field(
        default=None,
        description="Share of each accelerator's memory that the engine may take; by default the profile's. "
        "vLLM's recipe: below 0.95 with tensor parallelism on H100.",
    )
    kv_cache_dtype: Literal["auto", "fp8"] | None = Field(
        default=None,
        description="Type of the KV cache's elements: auto is the model's (bfloat16), fp8 takes half the memory; "
        "by default the profile's.",
    )
    extra_args: ExtraArguments = Field(
        default_factory=dict,
        description="Further vLLM engine arguments by exact name. Numbers are written as such, booleans as "
        '"true" or "false". Nothing that names a path, module, plugin, template or endpoint is permitted.',
        json_schema_extra=EXTRA_ARGUMENTS_SCHEMA,
    )


class RolloutStrategy(ApiModel):
    """How a change replaces running replicas."""

    type: Literal["BlueGreen", "Recreate"] = Field(
        default="BlueGreen",
        description="BlueGreen starts the new replica before the old one stops and needs room for both. "
        "Recreate stops first, where accelerators are scarce.",
    )


class RayServeSubstrate(ApiModel):
    """Replicas on an existing Ray cluster."""

    cluster_name: Name = Field(description="Name of an administrator's entry for a Ray cluster.")


class KubeRaySubstrate(ApiModel):
    """Replicas on a Ray cluster of their own, which KubeRay makes in the deployment's namespace."""


class Substrate(ApiModel):
    """Where replicas run."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            "!(has(self.kubeRay) && has(self.rayServe))",
            "spec.substrate is kubeRay or rayServe: remove one of them",
        )
    )

    kube_ray: KubeRaySubstrate | None = Field(default=None, description="On KubeRay: write `kubeRay: {}`.")
    ray_serve: RayServeSubstrate | None = Field(default=None, description="On an existing Ray cluster.")


class GptOssDeploymentSpec(ApiModel):
    """What to serve, and how."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.model.name != 'custom' || (has(self.verification) && has(self.verification.subject))",
                "spec.verification.subject is required with spec.model.name custom: "
                "name the subject that the weights are signed for",
                fieldPath=".verification",
            ),
            cel(
                "has(self.substrate) == has(oldSelf.substrate) && "
                "(!has(self.substrate) || self.substrate == oldSelf.substrate)",
                "spec.substrate is immutable: create another deployment and delete this one",
                fieldPath=".substrate",
            ),
            *(
                cel(
                    f"!has(self.{field}) || !has(self.substrate) || !has(self.substrate.rayServe)",
                    f"spec.{field} shapes pods that KubeRay makes: remove it, or use spec.substrate.kubeRay",
                    fieldPath=f".{field}",
                )
                for field in ("accelerator", "pod", "cache")
            ),
            cel(
                "!has(self.substrate) || !has(self.substrate.rayServe) || self.parallelism.pipeline == 1",
                "spec.parallelism.pipeline spans pods that KubeRay makes: remove it, or use spec.substrate.kubeRay",
                fieldPath=".parallelism",
            ),
        )
    )

    model: Model = Field(description="The model to serve.")
    verification: Verification = Field(
        default_factory=Verification, description="Narrows which signed weights may run."
    )
    parallelism: Parallelism = Field(default_factory=Parallelism, description="Accelerators per replica.")
    engine: Engine = Field(default_factory=Engine, description="Engine settings that differ from the profile.")
    scaling: Scaling = Field(default_factory=Scaling, description="Replicas, sleep and wake.")
    rollout_strategy: RolloutStrategy = Field(
        default_factory=RolloutStrategy, description="How changes are rolled out."
    )
    substrate: Substrate | None = Field(
        default=None, description="Where replicas run; by default what the operator's settings say."
    )
    accelerator: AcceleratorRequest | None = Field(
        default=None, description="What replicas on KubeRay compute on; NVIDIA GPUs by default."
    )
    pod: Pod | None = Field(default=None, description="Settings of the replicas' pods on KubeRay.")
    cache: Cache | None = Field(
        default=None, description="Where pods on KubeRay find weights that were fetched before; nowhere by default."
    )
    suspend: bool = Field(default=False, description="Puts the model to sleep at once and refuses requests.")

    @property
    def subject(self) -> str:
        """The subject name that the weights must be signed for."""
        return self.verification.subject or self.model.name


class GptOssDeployment(ApiModel):
    """One deployment as read from the API server: identity, annotations and specification."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str = ""
    annotations: Mapping[str, str] = Field(default_factory=dict)
    deleting: bool = False
    spec: GptOssDeploymentSpec

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read a raw object of the API server; pydantic's ValidationError says what is wrong with it."""
        metadata = raw["metadata"]
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            generation=metadata.get("generation", 0),
            resource_version=metadata.get("resourceVersion", ""),
            annotations=metadata.get("annotations") or {},
            deleting="deletionTimestamp" in metadata,
            spec=GptOssDeploymentSpec.model_validate(raw["spec"]),
        )

    @property
    def served_name(self) -> str:
        """The bare name that clients may ask for."""
        return self.spec.model.served_name or self.name

    @property
    def qualified_name(self) -> str:
        """``namespace/name``, which always works."""
        return f"{self.namespace}/{self.name}"


NAME_RULE = cel(
    f"self.metadata.name.size() <= {MAX_NAME_LENGTH} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    f"metadata.name must be a DNS-1035 label (a-z, 0-9, '-', starting with a letter) of at most {MAX_NAME_LENGTH} "
    "characters: choose a shorter or simpler name",
)
