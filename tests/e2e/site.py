"""What `make e2e` is told of the cluster it may use: by environment variables, for a person or a CI job.

| variable | meaning |
|---|---|
| ``KUBECONFIG`` | the cluster, as its administrator; it has KubeRay 1.7 or later, and volumes for claims of no class |
| ``E2E_IMAGE`` | image of ``docker/operator.Dockerfile``, ``registry/path/name:tag`` |
| ``E2E_SERVING_IMAGE`` | image of ``docker/serving.Dockerfile`` for a CPU |
| ``E2E_STORE_IMAGE`` | an image whose entry point is versitygw, an S3 server |
| ``E2E_REDIS_IMAGE`` | an image whose entry point is Redis or Valkey |
| ``E2E_VALUES`` | a file with further values of the chart |
| ``E2E_ANSWER`` | what the model answers, if it is not the tiny gpt-oss |
| ``E2E_ROLLOUT`` | ``Recreate`` where the cluster has no room for two engines |
| ``E2E_NETWORK_POLICIES`` | ``enforced`` where the cluster's network does so |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptoss_cli.local.tiny_model import ANSWER

_NEEDED = ("KUBECONFIG", "E2E_IMAGE", "E2E_SERVING_IMAGE")
_STORE = "versity/versitygw:v1.8.0"
_REDIS = "valkey/valkey:8.1"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster and the images for it."""

    kubeconfig: Path
    image: str
    serving_image: str
    store_image: str = _STORE
    redis_image: str = _REDIS
    values: Path | None = None
    answer: str = ANSWER
    rollout: str = "BlueGreen"
    enforces_network_policies: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Site":
        """Raises ValueError with what is missing."""
        missing = [name for name in _NEEDED if not environ.get(name)]
        if missing:
            raise ValueError(f"set {', '.join(missing)} (CONTRIBUTING.md, make e2e)")
        kubeconfig = Path(environ["KUBECONFIG"])
        if not kubeconfig.is_file():
            raise ValueError(f"KUBECONFIG is {kubeconfig}: name one kubeconfig file")
        image = environ["E2E_IMAGE"]
        if "/" not in image or ":" not in image.rpartition("/")[2]:
            raise ValueError(f"E2E_IMAGE is {image}: write registry/name:tag")
        rollout = environ.get("E2E_ROLLOUT") or "BlueGreen"
        if rollout not in ("BlueGreen", "Recreate"):
            raise ValueError(f"E2E_ROLLOUT is {rollout}: write BlueGreen or Recreate")
        policies = environ.get("E2E_NETWORK_POLICIES") or "ignored"
        if policies not in ("enforced", "ignored"):
            raise ValueError(f"E2E_NETWORK_POLICIES is {policies}: write enforced or ignored")
        values = environ.get("E2E_VALUES")
        return cls(
            kubeconfig=kubeconfig,
            image=image,
            serving_image=environ["E2E_SERVING_IMAGE"],
            store_image=environ.get("E2E_STORE_IMAGE") or _STORE,
            redis_image=environ.get("E2E_REDIS_IMAGE") or _REDIS,
            values=Path(values) if values else None,
            answer=environ.get("E2E_ANSWER") or ANSWER,
            rollout=rollout,
            enforces_network_policies=policies == "enforced",
        )

    @property
    def image_values(self) -> dict[str, str]:
        """The chart's `image` block."""
        path, _, tag = self.image.rpartition(":")
        registry, _, repository = path.rpartition("/")
        return {"registry": registry, "repository": repository, "tag": tag}
