"""The shapes of the gpt-oss models, and the bytes of weights that follow from them. Pure.

Source: ``config.json`` of openai/gpt-oss-20b and openai/gpt-oss-120b. The bytes that ``checkpoint_bytes``
derives equal ``metadata.total_size`` of their ``model.safetensors.index.json``.
"""

from dataclasses import dataclass

_BF16 = 2
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Multiples that a mixture-of-experts kernel rounds sizes up to.

    Source: vLLM 0.32, ``mxfp4_round_up_hidden_size_and_intermediate_size``.
    """

    intermediate: int
    hidden: int


UNPADDED = Padding(intermediate=1, hidden=1)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of one model. Layers alternate between a sliding window and full attention.

    Attributes:
        name: as ``spec.model.name`` has it.
        layers: transformer blocks, half of them with a sliding window.
        experts: experts of each block, stored as MXFP4.
        max_context: longest context in tokens.
    """

    name: str
    layers: int
    experts: int
    hidden: int = 2880
    intermediate: int = 2880
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 64
    vocabulary: int = 201088
    sliding_window: int = 128
    max_context: int = 131072

    @property
    def full_layers(self) -> int:
        """Layers that attend to the whole context."""
        return self.layers - self.sliding_layers

    @property
    def sliding_layers(self) -> int:
        """Layers that attend to the last ``sliding_window`` tokens only."""
        return self.layers // 2

    @property
    def tensor_sizes(self) -> tuple[int, ...]:
        """Tensor parallel sizes that divide the heads; beyond ``kv_heads`` each would be held twice."""
        return tuple(
            size
            for size in range(1, self.kv_heads + 1)
            if self.kv_heads % size == 0 and self.heads % size == 0 and self.intermediate % size == 0
        )

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the published safetensors files, headers apart."""
        return self._tensors(tensor=1, padding=UNPADDED)

    def loaded_bytes(self, *, tensor: int, padding: Padding, pipeline: int = 1, expert: bool = False) -> int:
        """Return the most bytes of weights that an accelerator holds once vLLM has loaded them.

        Args:
            tensor: accelerators that share each layer.
            padding: what kernels round up to.
            pipeline: stages that share the layers; the first and the last hold one of the embeddings each.
            expert: accelerators hold whole experts.
        """
        rotary = self.max_context * self.head_dim * _FLOAT32
        return self._tensors(tensor=tensor, padding=padding, pipeline=pipeline, expert=expert) + rotary

    def stage_layers(self, pipeline: int) -> int:
        """Return the most layers that one of ``pipeline`` stages has."""
        return -(-self.layers // pipeline)

    def kv_bytes_per_token(self, *, tensor: int, element_bytes: int) -> int:
        """Return the bytes that one token takes in one layer's KV cache on each accelerator."""
        return 2 * max(1, self.kv_heads // tensor) * self.head_dim * element_bytes

    def _tensors(self, *, tensor: int, padding: Padding, pipeline: int = 1, expert: bool = False) -> int:
        embeddings = (2 if pipeline == 1 else 1) * self.vocabulary * self.hidden // tensor * _BF16
        blocks = self.stage_layers(pipeline) * self._block(tensor, padding, expert=expert)
        return blocks + embeddings + self.hidden * _BF16

    def _block(self, tensor: int, padding: Padding, *, expert: bool) -> int:
        experts = -(-self.experts // tensor) if expert else self.experts
        intermediate = _round_up(self.intermediate if expert else self.intermediate // tensor, padding.intermediate)
        hidden = _round_up(self.hidden, padding.hidden)
        # Gate, up and down projection: four bits an element and one byte of scale for each 32 elements.
        matrices = experts * 3 * intermediate * hidden * 17 // 32
        expert_biases = experts * (2 * intermediate + hidden)
        projections = (self.heads + 2 * self.kv_heads) * self.head_dim // tensor
        attended = self.heads * self.head_dim // tensor
        attention = projections * (self.hidden + 1) + (attended + 1) * self.hidden + self.heads // tensor
        replicated = 2 * self.hidden + (self.hidden + 1) * self.experts  # Norms and router.
        return matrices + (expert_biases + attention + replicated) * _BF16


_ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture(name="gpt-oss-20b", layers=24, experts=32),
        Architecture(name="gpt-oss-120b", layers=36, experts=128),
    )
}


def architecture_of(model_name: str) -> Architecture | None:
    """Return the shape of a published model; None for ``custom``, whose shape only its weights tell."""
    return _ARCHITECTURES.get(model_name)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
