"""GptOssDeployment's status: what the operator tells people, gateways and GitOps tools."""

from typing import Annotated

from pydantic import Field

from gptoss_api.conditions import MAX_MESSAGE_LENGTH
from gptoss_api.model import DATE_TIME, INT32, INT64, ApiModel

_Text = Annotated[str, Field(max_length=MAX_MESSAGE_LENGTH)]
_Time = Annotated[str, Field(max_length=64)]


class Condition(ApiModel):
    """One observed aspect, in Kubernetes' usual form."""

    type: Annotated[str, Field(max_length=64)] = Field(description="Aspect that is observed.")
    status: Annotated[str, Field(max_length=7)] = Field(description="True, False or Unknown.")
    reason: Annotated[str, Field(max_length=128)] = Field(description="One word for programs.")
    message: _Text = Field(default="", description="A sentence for people that says what to change.")
    last_transition_time: _Time = Field(description="When status last changed.", json_schema_extra=DATE_TIME)
    observed_generation: int | None = Field(
        default=None,
        description="Generation of the object this was observed for.",
        json_schema_extra=INT64,
    )


class Replicas(ApiModel):
    """Counts of replicas."""

    ready: int = Field(default=0, description="Replicas that run.", json_schema_extra=INT32)
    desired: int = Field(default=0, description="Replicas that are wanted now.", json_schema_extra=INT32)
    terminating: int | None = Field(
        default=None,
        description="Replicas that are not wanted any more and whose pods still hold what they were given, on KubeRay.",
        json_schema_extra=INT32,
    )


class Endpoint(ApiModel):
    """Where clients go."""

    url: Annotated[str, Field(max_length=1024)] = Field(description="Base URL of the gateway's OpenAI API.")
    model: Annotated[str, Field(max_length=128)] = Field(description="Name to ask for; namespace/name works too.")


class EngineStatus(ApiModel):
    """What the engine was started with."""

    line: Annotated[str, Field(max_length=4096)] = Field(description="Resolved engine arguments, as vLLM's flags.")
    profile_version: Annotated[str, Field(max_length=64)] = Field(description="Profile and its version.")
    image: Annotated[str, Field(max_length=1024)] | None = Field(
        default=None,
        description="Image that replicas were first started with, by its digest as their nodes tell it, on KubeRay.",
    )
    max_num_seqs: int | None = Field(
        default=None, description="Sequences that one replica works on at once.", json_schema_extra=INT32
    )
    customized: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=32)] = Field(
        default=(),
        description="Engine arguments that the specification sets to another value than the profile.",
    )


class WeightsStatus(ApiModel):
    """Which weights run, and who signed them."""

    manifest_digest: Annotated[str, Field(max_length=71)] = Field(description="Digest of the signed manifest.")
    signer: Annotated[str, Field(max_length=128)] = Field(
        description="Fingerprint of the key that signed; empty if it was waived and is not known."
    )
    authority: Annotated[str, Field(max_length=63)] = Field(
        description="Authority of the policy that matched; empty if the signer was waived."
    )
    identity: Annotated[str, Field(max_length=1024)] | None = Field(
        default=None,
        description="Identity in the certificate that signed, in the form the authority expects; absent for a key.",
    )
    policy: Annotated[str, Field(max_length=253)] = Field(description="WeightTrustPolicy that allowed it.")
    bytes: int | None = Field(
        default=None,
        description="Bytes of the tensors that nodes fetch; absent if the source does not tell.",
        json_schema_extra=INT64,
    )
    signer_waived: _Text | None = Field(
        default=None, description="Why no authority vouches for the signer, where mode Audit waives that."
    )
    verified_at: _Time = Field(description="When signature and policy were checked.", json_schema_extra=DATE_TIME)


class FitStatus(ApiModel):
    """The estimate behind the condition Fit, for the smallest accelerator that it may run on. Bytes are of each."""

    accelerator: Annotated[str, Field(max_length=64)] = Field(description="The accelerator, as gptoss fit names it.")
    memory_bytes: int = Field(description="What it has.", json_schema_extra=INT64)
    weights_bytes: int = Field(description="What the weights take.", json_schema_extra=INT64)
    kv_cache_bytes: int = Field(
        description="What is left for the KV cache; negative if nothing is.", json_schema_extra=INT64
    )
    largest_context: int = Field(
        description="Longest context that one sequence may have, in tokens; 0 if none.", json_schema_extra=INT32
    )


class PullStatus(ApiModel):
    """A pull that runs. What nobody can tell is absent."""

    started_at: _Time = Field(description="When the node began.", json_schema_extra=DATE_TIME)
    progress: Annotated[str, Field(max_length=63)] | None = Field(
        default=None, description="How much of the weights is verified, for people."
    )
    files_done: int | None = Field(default=None, description="Verified files.", json_schema_extra=INT64)
    files_total: int | None = Field(default=None, description="Files of the model.", json_schema_extra=INT64)
    bytes_done: int | None = Field(
        default=None,
        description="Verified bytes, whether fetched now or found on the node's disk.",
        json_schema_extra=INT64,
    )
    bytes_total: int | None = Field(default=None, description="Bytes of the model.", json_schema_extra=INT64)
    bytes_per_second: int | None = Field(
        default=None, description="Bytes verified per second, recently.", json_schema_extra=INT64
    )
    seconds_left: int | None = Field(
        default=None, description="Estimate at that rate; absent while nothing moves.", json_schema_extra=INT64
    )


class Wake(ApiModel):
    """The last or the running wake."""

    started_at: _Time | None = Field(default=None, description="When demand was seen.", json_schema_extra=DATE_TIME)
    stage: Annotated[str, Field(max_length=63)] | None = Field(
        default=None, description="Stage of a running wake; absent when none runs."
    )
    last_seconds: float | None = Field(
        default=None, description="Seconds the last finished wake took, from demand to an answering engine."
    )


class ScheduleStatus(ApiModel):
    """What the schedules ask for now, and what they will ask for next."""

    min_replicas: int = Field(
        description="Replicas that stay up now, by minReplicas and the open windows.", json_schema_extra=INT32
    )
    open: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=16)] = Field(
        default=(), description="Schedules whose window is open now."
    )
    next_change: _Time | None = Field(
        default=None,
        description="When the number changes next; absent if not within a week.",
        json_schema_extra=DATE_TIME,
    )
    next_min_replicas: int | None = Field(
        default=None, description="Replicas that stay up from then on.", json_schema_extra=INT32
    )


class GptOssDeploymentStatus(ApiModel):
    """What is. Written by the operator only."""

    observed_generation: int | None = Field(
        default=None,
        description="Generation that this status describes.",
        json_schema_extra=INT64,
    )
    state: Annotated[str, Field(max_length=63)] | None = Field(
        default=None, description="One word for people, derived from the conditions; programs read those."
    )
    replicas: Replicas | None = Field(default=None, description="Counts of replicas.")
    endpoint: Endpoint | None = Field(default=None, description="Where clients go.")
    engine: EngineStatus | None = Field(default=None, description="What the engine was started with.")
    weights: WeightsStatus | None = Field(default=None, description="Verified weights.")
    fit: FitStatus | None = Field(
        default=None, description="The estimate behind the condition Fit; absent where there is none."
    )
    pull: PullStatus | None = Field(
        default=None,
        description="How far nodes are with fetching and verifying weights. Of several, the one that is furthest "
        "behind; absent when none is known to be at it.",
    )
    wake: Wake | None = Field(default=None, description="The last or the running wake.")
    schedule: ScheduleStatus | None = Field(default=None, description="What spec.scaling.schedules ask for.")
    drain_epoch: int | None = Field(
        default=None,
        description="Counts drains. Gateways hold new requests while a drain runs and acknowledge its number.",
        json_schema_extra=INT64,
    )
    proved_generation: int | None = Field(
        default=None,
        description="Last generation of the engine's settings that has answered.",
        json_schema_extra=INT64,
    )
    last_retry: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="Last value of the retry annotation that was acted on."
    )
    last_wake: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="Last value of the wake annotation that was acted on."
    )
    failed_source: Annotated[str, Field(max_length=128)] | None = Field(
        default=None,
        description="Fingerprint of the source whose bytes a node refused; another start waits until it changes.",
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field(
        default=(),
        description="Observed aspects.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
