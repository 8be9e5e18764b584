"""Verified weights on this node, and what is derived from them, before an engine may open a file."""

import logging
from pathlib import Path

from gptoss_api.application import WeightsArguments
from gptoss_serving import vocabulary
from gptoss_serving.errors import WeightsRefusedError
from gptoss_serving.node import Node
from gptoss_weights.errors import WeightsError
from gptoss_weights.materialise import pull
from gptoss_weights.sources import SourceSettings

logger = logging.getLogger(__name__)


def ensure(weights: WeightsArguments, node: Node) -> Path:
    """Make weights and vocabulary ready on this node; return the folder for the engine.

    Raises:
        WeightsRefusedError: with the reason of what is wrong with weights, source or folder.
        VocabularyError: the tokenizer is not gpt-oss's.
    """
    path = verified_copy(weights, node)
    vocabulary.provide(path / "tokenizer.json", node.vocabulary_of(weights))
    return path


def verified_copy(weights: WeightsArguments, node: Node) -> Path:
    """Pull what is missing and verify all of it; return the private copy.

    Raises:
        WeightsRefusedError: with the reason of what is wrong with weights, source or folder.
    """
    try:
        copy = pull(
            weights.uri,
            manifest_digest=weights.manifest_digest,
            subject=weights.subject,
            directory=node.weights_dir,
            settings=SourceSettings.from_environment(),
        )
    except WeightsError as error:
        raise WeightsRefusedError.because(error) from error
    logger.info(
        "verified %d bytes of %s in %.1f s (%d fetched)", copy.bytes, weights.subject, copy.seconds, copy.fetched_bytes
    )
    return copy.path
