"""Verified weights on this node, and what is derived from them, before an engine may open a file."""

import logging
import os
from pathlib import Path

from gptoss_api.application import WeightsArguments
from gptoss_serving import pull_report, vocabulary
from gptoss_serving.errors import NodeMisconfiguredError, WeightsRefusedError
from gptoss_serving.node import Node
from gptoss_weights.errors import WeightsError
from gptoss_weights.materialise import pull
from gptoss_weights.sources import SourceSettings

_log = logging.getLogger(__name__)


def ensure(weights: WeightsArguments, node: Node) -> Path:
    """Make weights and vocabulary ready on this node; return the folder for the engine.

    Raises:
        WeightsRefusedError: with the reason of what is wrong with weights, source or folder.
        NodeMisconfiguredError: a prepared copy is missing, or isn't safe from this process.
        VocabularyError: the tokenizer is not gpt-oss's.
    """
    path = prepared_copy(weights, node) if node.weights_prepared else verified_copy(weights, node)
    vocabulary.provide(path / "tokenizer.json", node.vocabulary_of(weights))
    return path


def prepared_copy(weights: WeightsArguments, node: Node) -> Path:
    """Return the copy that another user verified before this process could start.

    Raises:
        NodeMisconfiguredError: it is missing, or lies where this process could have changed it.
    """
    path = node.copy_of(weights)
    if not path.is_dir():
        raise NodeMisconfiguredError(
            f"there is no verified copy {path.name} in {node.weights_dir}: GPTOSS_WEIGHTS_PREPARED promises one that "
            "`gptoss weights pull` made before Ray started"
        )
    if not os.statvfs(path).f_flag & os.ST_RDONLY:
        raise NodeMisconfiguredError(
            f"{node.weights_dir} is not mounted read-only, so its copies are no proof: mount it read-only for Ray, "
            "or unset GPTOSS_WEIGHTS_PREPARED"
        )
    return path


def verified_copy(weights: WeightsArguments, node: Node) -> Path:
    """Pull what is missing and verify all of it; return the private copy.

    Raises:
        WeightsRefusedError: with the reason of what is wrong with weights, source or folder.
    """
    try:
        with pull_report.told(weights) as progress:
            copy = pull(
                weights.uri,
                revision=weights.revision,
                manifest_digest=weights.manifest_digest,
                subject=weights.subject,
                directory=node.weights_dir,
                settings=SourceSettings.from_environment(),
                progress=progress,
            )
    except WeightsError as error:
        # Ray hands the whole traceback out, and a cause may quote what a store answered: that goes to the log alone.
        _log.warning("the weights can't be used", exc_info=error)
        raise WeightsRefusedError.because(error) from None
    _log.info(
        "verified %d bytes of %s in %.1f s (%d fetched)", copy.bytes, weights.subject, copy.seconds, copy.fetched_bytes
    )
    return copy.path
