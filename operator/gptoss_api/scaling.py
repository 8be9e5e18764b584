"""How many replicas a deployment has, when it sleeps, and how long clients wait for it to wake."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from gptoss_api.model import INT32, ApiModel, Name, cel, rules


class Schedule(ApiModel):
    """A weekly window in which replicas stay up without requests."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            "self.start != self.end",
            "spec.scaling.schedules[].end must differ from start: write 00:00 and 24:00 for whole days",
            fieldPath=".end",
        )
    )

    name: Name = Field(description="Name of the window in status and events.")
    time_zone: Annotated[
        str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$")
    ] = Field(
        description="Time zone of days, start and end: a name of the IANA time zone database, such as "
        "Europe/Berlin or UTC. Daylight saving time is followed.",
        json_schema_extra=cel(
            "self != 'Local' && timestamp('2026-01-01T00:00:00Z').getHours(self) >= 0",
            "spec.scaling.schedules[].timeZone must be a name of the IANA time zone database, such as Europe/Berlin",
        ),
    )
    days: Annotated[
        tuple[Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], ...], Field(min_length=1, max_length=7)
    ] = Field(
        description="Days on which the window opens.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    start: Annotated[str, Field(min_length=5, max_length=5, pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] = Field(
        description="Wall time at which the window opens, HH:MM. The engine is started then, not before."
    )
    end: Annotated[str, Field(min_length=5, max_length=5, pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")] = Field(
        description="Wall time at which it closes, HH:MM; 24:00 is the end of the day. An end before the start is "
        "on the next day. From then on the model goes to sleep once it was idle for idleSeconds.",
    )
    min_replicas: Annotated[int, Field(ge=1, le=256)] = Field(
        default=1,
        description="Replicas that stay up while the window is open. Where several are open, the highest counts.",
        json_schema_extra=INT32,
    )


class Scaling(ApiModel):
    """Bounds for replicas, and how the deployment sleeps and wakes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.minReplicas <= self.maxReplicas",
                "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas: lower the one or raise the other",
                fieldPath=".minReplicas",
            ),
            cel(
                "!has(self.schedules) || self.schedules.all(s, s.minReplicas <= self.maxReplicas)",
                "spec.scaling.schedules[].minReplicas must not exceed spec.scaling.maxReplicas: "
                "lower the one or raise the other",
                fieldPath=".schedules",
            ),
        )
    )

    min_replicas: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0,
        description="Replicas that stay up without requests. 0 lets the model sleep.",
        json_schema_extra=INT32,
    )
    max_replicas: Annotated[int, Field(ge=1, le=256)] = Field(
        default=1, description="Upper bound of replicas, under load.", json_schema_extra=INT32
    )
    target_ongoing_requests: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="Requests per replica above which another is started; by default three quarters of the "
        "engine's maxNumSeqs.",
        json_schema_extra=INT32,
    )
    scale_up_delay_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=30,
        description="Seconds for which the load must call for more replicas before they are started.",
        json_schema_extra=INT32,
    )
    scale_down_delay_seconds: Annotated[int, Field(ge=0, le=86400)] = Field(
        default=600,
        description="Seconds for which the load must do with fewer replicas before the others go, each when its "
        "requests have ended. The last one goes by idleSeconds.",
        json_schema_extra=INT32,
    )
    idle_seconds: Annotated[int, Field(ge=5, le=604800)] = Field(
        default=900,
        description="Seconds without a request after which the model goes to sleep.",
        json_schema_extra=INT32,
    )
    wake_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=600,
        description="Longest wait of one request for a waking model, in seconds.",
        json_schema_extra=INT32,
    )
    start_timeout_seconds: Annotated[int, Field(ge=30, le=86400)] = Field(
        default=3600,
        description="Seconds after which a start that does not answer is given up as failed.",
        json_schema_extra=INT32,
    )
    max_held_requests: Annotated[int, Field(ge=0, le=10000)] = Field(
        default=100,
        description="Requests each gateway process holds for this model while it wakes; more are refused with 429.",
        json_schema_extra=INT32,
    )
    initial: Literal["Prove", "Idle"] = Field(
        default="Prove",
        description="Prove starts a new deployment once, so that Ready means it has answered. Idle leaves it "
        "asleep until the first request, its signature checked.",
    )
    schedules: Annotated[tuple[Schedule, ...], Field(max_length=16)] = Field(
        default=(),
        description="Windows, such as office hours, in which replicas stay up without requests.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
