"""Runs the pull on every node of a replica's placement group, before Ray LLM starts any engine process."""

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase

from gptoss_api.application import WeightsArguments
from gptoss_serving import vocabulary
from gptoss_serving.node import Node
from gptoss_serving.weights import ensure


class WeightsCallback(CallbackBase):
    """Ray LLM's hook; a raise fails the replica with the error's text."""

    @staticmethod
    def keywords(weights: WeightsArguments) -> dict[str, Any]:
        """Return what the callback needs, as plain values that Ray can send to other nodes."""
        return {"weights": weights.model_dump(by_alias=True, mode="json")}

    def on_before_download_model_files_distributed(self) -> None:
        """Pull and verify, once on each distinct node."""
        ensure(self._weights(), Node.from_environment())

    async def on_after_node_init(self) -> None:
        """Hold the replica's copy and point it at the vocabulary: every node verified, and no engine is made yet."""
        node, weights = Node.from_environment(), self._weights()
        node.hold(weights)
        vocabulary.announce(node.vocabulary_of(weights))

    def _weights(self) -> WeightsArguments:
        return WeightsArguments.model_validate(self.kwargs["weights"])
