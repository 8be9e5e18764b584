"""Model profiles: engine settings that are known to be right for a gpt-oss model.

A profile's version changes whenever one of its numbers does. A running deployment keeps what it
was started with until its specification changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Engine settings of one model.

    Attributes:
        name: what ``spec.model.name`` says.
        version: grows with every change of a number below.
        max_model_len: context in tokens; None leaves it to the model's own configuration.
        max_num_seqs: sequences one replica works on at once.
        by_tensor: further vLLM keyword arguments per tensor parallel size.
    """

    name: str
    version: int
    max_model_len: int | None
    max_num_seqs: int
    by_tensor: Mapping[int, Mapping[str, int | float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name and version, as status shows them."""
        return f"{self.name}/{self.version}"


_PROFILES = {
    profile.name: profile
    for profile in (
        # 131,072 tokens: the model card's context length.
        Profile(name="gpt-oss-20b", version=1, max_model_len=131072, max_num_seqs=256),
        # One 80 GB card holds 63 GB of weights only with 0.95 of its memory and small batches; from two
        # cards on the engine must stay below 0.95. Source: vLLM's gpt-oss recipe.
        Profile(
            name="gpt-oss-120b",
            version=1,
            max_model_len=131072,
            max_num_seqs=256,
            by_tensor={1: {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024}},
        ),
        Profile(name="custom", version=1, max_model_len=None, max_num_seqs=32),
    )
}


def profile_for(model_name: str) -> Profile:
    """Return the profile that ``spec.model.name`` selects.

    Raises:
        ValueError: no such profile; the message lists those there are.
    """
    try:
        return _PROFILES[model_name]
    except KeyError:
        raise ValueError(f"spec.model.name {model_name!r} has no profile: use one of {', '.join(_PROFILES)}") from None
