"""What the work queue holds: names of things to look at, never the things themselves."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class DeploymentKey:
    """One GptOssDeployment."""

    namespace: str
    name: str

    kind = "GptOssDeployment"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, order=True)
class ClusterKey:
    """One Ray cluster, with all our applications on it."""

    name: str

    kind = "RayCluster"

    def __str__(self) -> str:
        return f"raycluster/{self.name}"


@dataclass(frozen=True, order=True)
class RayServiceKey:
    """The RayService of one GptOssDeployment."""

    namespace: str
    name: str

    kind = "RayService"

    def __str__(self) -> str:
        return f"rayservice/{self.namespace}/{self.name}"


Key = DeploymentKey | ClusterKey | RayServiceKey
