"""What a node tells its replicas through the environment in which ``ray start`` ran.

Nothing of this is in the application's arguments: they come from the operator, are readable by
everybody who reaches Ray's dashboard, and a changed byte in them restarts the engine.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptoss_api.application import WeightsArguments
from gptoss_serving.errors import NodeMisconfiguredError
from gptoss_weights.location import Location
from gptoss_weights.storage import PrivateCopy

WEIGHTS_DIR = "GPTOSS_WEIGHTS_DIR"
GATEWAY_TOKENS_FILE = "GPTOSS_GATEWAY_TOKENS_FILE"
DEVICE = "GPTOSS_DEVICE"
WEIGHTS_PREPARED = "GPTOSS_WEIGHTS_PREPARED"
VOCABULARY_DIR = "GPTOSS_VOCABULARY_DIR"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node's settings.

    Attributes:
        weights_dir: private folder for verified copies; the same path on every node of the cluster.
        gateway_tokens_file: hashes of the tokens that replicas accept, one ``sha256:<hex>`` a line.
        device: what the engine computes on.
        weights_prepared: another user has put verified copies there already; this one may only read them.
        vocabulary_dir: where derived vocabularies go, if not beside the weights.
    """

    weights_dir: Path
    gateway_tokens_file: Path
    device: Literal["gpu", "cpu"]
    weights_prepared: bool = False
    vocabulary_dir: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Node":
        """Read the settings.

        Raises:
            NodeMisconfiguredError: a variable is missing or wrong; the message names it.
        """
        variables = os.environ if environ is None else environ
        device = variables.get(DEVICE, "gpu")
        if device not in ("gpu", "cpu"):
            raise NodeMisconfiguredError(f"{DEVICE} is {device!r} on the Ray node: set it to gpu or cpu")
        return cls(
            weights_dir=_path(variables, WEIGHTS_DIR, "a private folder for verified weights"),
            gateway_tokens_file=_path(variables, GATEWAY_TOKENS_FILE, "a file with the hashes of the gateways' tokens"),
            device="cpu" if device == "cpu" else "gpu",
            weights_prepared=variables.get(WEIGHTS_PREPARED) == "1",
            vocabulary_dir=_path(variables, VOCABULARY_DIR, "a folder for vocabularies")
            if VOCABULARY_DIR in variables
            else None,
        )

    def copy_of(self, weights: WeightsArguments) -> Path:
        """Return where these weights' verified copy is, once it is there."""
        return self._private_copy(weights).ready

    def hold(self, weights: WeightsArguments) -> None:
        """Keep these weights' copy from being removed for as long as this process lives.

        A prepared copy lies in a volume of the pod's own, where nobody makes room and we may not write.
        """
        if not self.weights_prepared:
            self._private_copy(weights).hold()

    def vocabulary_of(self, weights: WeightsArguments) -> Path:
        """Return the folder of the vocabulary that is derived from these weights' tokenizer."""
        folder = self.vocabulary_dir or self.weights_dir / "vocabularies"
        return folder / self._private_copy(weights).ready.name

    def _private_copy(self, weights: WeightsArguments) -> PrivateCopy:
        return PrivateCopy.of(
            self.weights_dir,
            manifest_digest=weights.manifest_digest,
            location=Location.parse(weights.uri, revision=weights.revision),
        )


def _path(variables: Mapping[str, str], name: str, what: str) -> Path:
    value = variables.get(name, "")
    if not value.startswith("/"):
        raise NodeMisconfiguredError(
            f"{name} is {value!r} on the Ray node: set it to the absolute path of {what} where `ray start` runs"
        )
    return Path(value)
