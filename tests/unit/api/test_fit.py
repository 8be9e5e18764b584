"""The memory model against what others measured and published, and its properties."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_api.architecture import architecture_of
from gptoss_api.fit import SMALLEST_CONTEXT, Fit, Load, Verdict, assess, estimate, kv_bytes, load_of
from gptoss_api.hardware import GIB, accelerator_named, accelerators, accelerators_of_ray_type

SMALL, LARGE = architecture_of("gpt-oss-20b"), architecture_of("gpt-oss-120b")
assert SMALL is not None
assert LARGE is not None
MODELS = {"20b": SMALL, "120b": LARGE}


def load(**more) -> Load:
    usual = {"max_model_len": 131072, "max_num_seqs": 256, "max_num_batched_tokens": 2048, "utilization": 0.9}
    return Load(**{**usual, **more})


def fit(model: str, accelerator: str, **arguments) -> Fit:
    """``arguments`` are vLLM's."""
    card = accelerator_named(accelerator)
    return assess(MODELS[model], card, load_of(arguments, MODELS[model], card), others=accelerators())


# metadata.total_size of model.safetensors.index.json in huggingface.co/openai/gpt-oss-20b and -120b.
@pytest.mark.parametrize(("model", "total_size"), [("20b", 13_761_264_768), ("120b", 65_248_815_744)])
def test_the_shapes_give_the_published_checkpoints_to_the_byte(model, total_size) -> None:
    assert MODELS[model].checkpoint_bytes == total_size


LOADED = [
    # "Model loading took 65.9651 GiB", H100, Marlin: https://github.com/vllm-project/vllm/issues/23278
    ("120b", "H100-80GB", 65.9651, 0.002),
    # "Model loading took 64.38 GiB", H100, Triton pads less: https://github.com/vllm-project/vllm/issues/33155
    ("120b", "H100-80GB", 64.38, 0.03),
    # "Model loading took 13.72 GiB", A100, Marlin: https://myoceane.fr/index.php/ai-vllm-a100-gemma-4/
    ("20b", "A100-80GB", 13.72, 0.002),
]


@pytest.mark.parametrize(("model", "accelerator", "gib", "tolerance"), LOADED)
def test_loaded_weights_are_as_large_as_vllm_logs(model, accelerator, gib, tolerance) -> None:
    loaded = MODELS[model].loaded_bytes(tensor=1, padding=accelerator_named(accelerator).padding) / GIB
    assert loaded == pytest.approx(gib, rel=tolerance)


def test_a_sequence_takes_as_much_kv_cache_as_vllm_says() -> None:
    # "max seq len (131072), (4.54 GiB KV cache is needed", max_num_batched_tokens 1024, before asynchronous
    # scheduling: https://github.com/vllm-project/vllm/issues/27508
    asked = load(max_num_batched_tokens=1024, steps_in_flight=1)
    assert round(kv_bytes(LARGE, asked, 131072) / GIB, 2) == 4.54
    # 8,192 blocks of 16 tokens, and 72 for the window and what is in flight, and one more: windows begin anywhere.
    assert kv_bytes(LARGE, asked, 131072) == (8192 + 72 + 1) * 18 * 32768


def test_blocks_are_as_large_as_vllms() -> None:
    # "Available KV cache memory: 8.99 GiB", "GPU KV cache size: 130,960 tokens" (vLLM 0.11 divides the blocks by the
    # two groups), gpt-oss-120b: https://blog.huikang.dev/2025/12/28/vllm-logs.html
    block = 16 * LARGE.kv_bytes_per_token(tensor=1, element_bytes=2) * LARGE.full_layers
    assert 8.985 <= 130_960 / 16 * 2 * block / GIB <= 8.995


# A full-attention layer's share: 36 KiB a token for 120b and 24 KiB for 20b in bfloat16, half of it in fp8.
@pytest.mark.parametrize(
    ("model", "element", "kib"), [("120b", 2, 36), ("20b", 2, 24), ("120b", 1, 18), ("20b", 1, 12)]
)
def test_only_full_attention_grows_with_the_context(model, element, kib) -> None:
    asked = load(kv_element_bytes=element)
    longer, shorter = (kv_bytes(MODELS[model], asked, context) for context in (131072, 65536))
    assert (longer - shorter) / 65536 == kib * 1024


AVAILABLE = [
    # https://blog.huikang.dev/2025/12/28/vllm-logs.html: "Available KV cache memory: 8.99 GiB", vLLM 0.11.2
    ("120b", "H100-80GB", {"utilization": 0.96, "max_num_seqs": 6, "max_num_batched_tokens": 2048}, 8.99),
    # https://github.com/vllm-project/vllm/issues/27508: 1.71 GiB; H100 defaults to 1,024 sequences
    ("120b", "H100-80GB", {"utilization": 0.95, "max_num_seqs": 1024, "max_num_batched_tokens": 1024}, 1.71),
    # https://github.com/vllm-project/vllm/issues/23278: -2.14 GiB, all defaults of vLLM 0.10.1
    ("120b", "H100-80GB", {"utilization": 0.9, "max_num_seqs": 1024, "max_num_batched_tokens": 8192}, -2.14),
    # https://myoceane.fr/index.php/ai-vllm-a100-gemma-4/: 36.56 GiB, vLLM 0.19.0
    ("20b", "A100-80GB", {"utilization": 0.65, "max_num_seqs": 256, "max_num_batched_tokens": 2048}, 36.56),
]


@pytest.mark.parametrize(("model", "accelerator", "settings", "gib"), AVAILABLE)
def test_what_is_left_for_the_kv_cache_is_told_too_low_rather_than_too_high(model, accelerator, settings, gib) -> None:
    # Those versions did not count CUDA graphs.
    found = estimate(MODELS[model], accelerator_named(accelerator), load(graphs=False, **settings))
    assert gib - 1.3 <= found.kv_available / GIB <= gib


RECIPE = "https://github.com/vllm-project/recipes/blob/main/OpenAI/GPT-OSS.md"
VERDICTS = [
    # The recipe's cure for one H100 of 80 GB, and the failure it cures.
    (
        "120b",
        "H100-80GB",
        {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024, "max_num_seqs": 256},
        "Fits",
    ),
    ("120b", "H100-80GB", {"gpu_memory_utilization": 0.9}, "DoesNotFit"),
    # https://github.com/vllm-project/vllm/issues/27508: the cure alone was not enough with 1,024 sequences.
    ("120b", "H100-80GB", {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024}, "FitsWithReducedContext"),
    # "gpt-oss-120b will fit on a single A100 (80GB)", "scaling it to higher TP sizes can help".
    ("120b", "A100-80GB", {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024}, "Fits"),
    ("120b", "A100-80GB", {"max_num_seqs": 128}, "Fits"),
    ("120b", "A100-80GB", {"tensor_parallel_size": 2}, "Fits"),
    ("120b", "A100-80GB", {"tensor_parallel_size": 4}, "Fits"),
    # "openai/gpt-oss-20b should run on a single A100", and on every card of the recipe's list.
    ("20b", "A100-40GB", {}, "Fits"),
    ("20b", "H100-80GB", {}, "Fits"),
    # "When running TP2 on H100, set your gpu memory utilization below 0.95".
    ("120b", "H100-80GB", {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.95}, "DoesNotFit"),
    ("120b", "H100-80GB", {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.94}, "Fits"),
    # The recipe's accuracy run on 8 H100.
    (
        "120b",
        "H100-80GB",
        {
            "tensor_parallel_size": 8,
            "max_num_batched_tokens": 10240,
            "max_num_seqs": 128,
            "gpu_memory_utilization": 0.85,
        },
        "Fits",
    ),
    # The recipe's launch on MI300X.
    ("120b", "MI300X", {"tensor_parallel_size": 8, "gpu_memory_utilization": 0.95, "block_size": 64}, "Fits"),
    # mlcommons/inference_results_v6.1, closed/AMD/src/gpt-oss-120b/offline_mi355x.yaml
    (
        "120b",
        "MI355X",
        {
            "gpu_memory_utilization": 0.96,
            "max_num_batched_tokens": 65536,
            "max_model_len": 32768,
            "max_num_seqs": 1792,
            "kv_cache_dtype": "fp8",
        },
        "Fits",
    ),
    # Ada is not on the recipe's list of verified hardware, nor is SM120.
    ("20b", "L40S", {}, "Unverified"),
    ("20b", "RTX-PRO-6000", {}, "Unverified"),
    # Below compute capability 8.0 there is no MXFP4.
    ("20b", "T4", {}, "DoesNotFit"),
    ("20b", "V100-32GB", {}, "DoesNotFit"),
    ("120b", "A100-40GB", {}, "DoesNotFit"),
    ("120b", "B200", {"tensor_parallel_size": 3}, "DoesNotFit"),
]


@pytest.mark.parametrize(("model", "accelerator", "arguments", "verdict"), VERDICTS)
def test_verdicts_agree_with_what_is_published(model, accelerator, arguments, verdict) -> None:
    found = fit(model, accelerator, **arguments)
    assert found.verdict == verdict, found.message


def test_20b_fits_a_16_gb_card_only_with_everything_else_made_small() -> None:
    # The recipe says that 16 GB are enough; a GeForce of that size shows 15.48 GiB.
    found = fit("20b", "RTX-5080", max_num_seqs=256)
    assert found.verdict is Verdict.DOES_NOT_FIT
    assert "maxModelLen 12288, maxNumSeqs 8, gpuMemoryUtilization 0.95" in found.message
    small = {"max_model_len": 12288, "max_num_seqs": 8, "gpu_memory_utilization": 0.95, "max_num_batched_tokens": 512}
    assert fit("20b", "RTX-5080", enforce_eager=True, **small).verdict is Verdict.UNVERIFIED


MESSAGES = [
    ("120b", "A100-40GB", {}, ["at least", "of weights", "spec.parallelism.tensor 4", "1 x H100-NVL"]),
    ("20b", "A10G", {"max_num_seqs": 256, "max_model_len": 131072, "gpu_memory_utilization": 0.85},
     ["spec.engine.maxModelLen to", "spec.parallelism.tensor 2"]),
    ("20b", "T4", {}, ["T4", "compute capability 7.5", "8.0"]),
    ("20b", "H100-80GB", {"tensor_parallel_size": 6}, ["spec.parallelism.tensor 6", "1, 2, 4, 8"]),
    ("20b", "H100-80GB", {"gpu_memory_utilization": 0.99}, ["gpu-memory-utilization 0.99", "use 0.98 or less"]),
    ("20b", "L4", {"max_num_seqs": 64}, ["L4", "try it before you rely on it"]),
]  # fmt: skip


@pytest.mark.parametrize(("model", "accelerator", "arguments", "parts"), MESSAGES)
def test_messages_say_what_to_change(model, accelerator, arguments, parts) -> None:
    message = fit(model, accelerator, **arguments).message
    assert [part for part in parts if part not in message] == [], message
    assert len(message) <= 1024


def test_the_context_that_is_advised_fits() -> None:
    arguments = {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024, "max_num_seqs": 1024}
    reduced = fit("120b", "H100-80GB", **arguments)
    assert reduced.verdict is Verdict.FITS_WITH_REDUCED_CONTEXT
    advised = int(reduced.message.split("spec.engine.maxModelLen to ")[1].split()[0])
    assert advised % 1024 == 0
    assert fit("120b", "H100-80GB", max_model_len=advised, **arguments).verdict is Verdict.FITS


SPREAD = [
    ("120b", "A100-40GB", {"tensor_parallel_size": 1}, Verdict.DOES_NOT_FIT),
    ("120b", "A100-40GB", {"tensor_parallel_size": 1, "pipeline_parallel_size": 2}, Verdict.FITS_WITH_REDUCED_CONTEXT),
    ("120b", "A100-40GB", {"tensor_parallel_size": 1, "pipeline_parallel_size": 4}, Verdict.FITS),
    ("120b", "L4", {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, Verdict.FITS_WITH_REDUCED_CONTEXT),
    ("120b", "A100-40GB", {"tensor_parallel_size": 4, "enable_expert_parallel": True}, Verdict.FITS),
]


@pytest.mark.parametrize(("model", "accelerator", "arguments", "verdict"), SPREAD)
def test_stages_share_layers_and_accelerators_share_experts(model, accelerator, arguments, verdict) -> None:
    asked = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "gpu_memory_utilization": 0.9, **arguments}
    found = fit(model, accelerator, **asked)
    assert found.verdict is verdict, found.message
    stages = arguments.get("pipeline_parallel_size", 1)
    said = f"{stages * arguments['tensor_parallel_size']} x {accelerator}" + (f" in {stages} stages" * (stages > 1))
    assert f"on {said}: " in found.message


@given(st.sampled_from(list(MODELS)), st.integers(1, 8), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_the_stages_of_a_pipeline_hold_the_whole_model(model, pipeline, tensor, expert) -> None:
    shape, padding = MODELS[model], accelerator_named("H100-80GB").padding
    whole = shape.loaded_bytes(tensor=tensor, padding=padding, expert=expert)
    stage = shape.loaded_bytes(tensor=tensor, padding=padding, pipeline=pipeline, expert=expert)
    assert shape.stage_layers(pipeline) * pipeline >= shape.layers
    assert whole / pipeline <= stage <= whole


def test_a_copy_in_bfloat16_is_counted_by_its_files() -> None:
    card = accelerator_named("H200")
    asked = load_of({"max_num_seqs": 64}, LARGE, card)
    assert assess(LARGE, card, asked, checkpoint_bytes=LARGE.checkpoint_bytes + 10_000).verdict is Verdict.FITS
    bloated = assess(LARGE, card, asked, checkpoint_bytes=233_000_000_000, others=accelerators())
    assert bloated.verdict is Verdict.DOES_NOT_FIT
    assert "spec.parallelism.tensor 2" in bloated.message


def test_what_ray_calls_an_accelerator_is_known() -> None:
    assert [each.name for each in accelerators_of_ray_type("A100")] == ["A100-40GB", "A100-80GB"]
    assert [each.name for each in accelerators_of_ray_type("AMD-Instinct-MI300X-OAM")] == ["MI300X"]
    assert accelerators_of_ray_type("TPU-V6E") == ()
    with pytest.raises(ValueError, match="H100-80GB"):
        accelerator_named("H9000")


def test_every_accelerator_says_where_its_memory_is_from() -> None:
    assert [each.name for each in accelerators() if not each.source] == []


models = st.sampled_from([SMALL, LARGE])
cards = st.sampled_from([each for each in accelerators() if each.memory_bytes])
loads = st.builds(
    Load,
    max_model_len=st.integers(SMALLEST_CONTEXT, 131072),
    max_num_seqs=st.integers(1, 4096),
    max_num_batched_tokens=st.integers(64, 65536),
    utilization=st.floats(0.1, 0.98),
    tensor=st.sampled_from([1, 2, 4, 8]),
    kv_element_bytes=st.sampled_from([1, 2]),
    block_tokens=st.sampled_from([16, 32, 64]),
    graphs=st.booleans(),
    steps_in_flight=st.sampled_from([1, 2]),
)
ORDER = [Verdict.DOES_NOT_FIT, Verdict.FITS_WITH_REDUCED_CONTEXT, Verdict.UNVERIFIED, Verdict.FITS]


@given(models, loads, st.integers(0, 4096))
def test_a_longer_context_never_takes_less(model, asked, more) -> None:
    context = asked.max_model_len
    assert kv_bytes(model, asked, context) <= kv_bytes(model, asked, context + more)


@given(models, cards, loads, st.integers(1, 4096))
def test_more_sequences_never_leave_more(model, card, asked, more) -> None:
    fewer = estimate(model, card, asked)
    greater = estimate(model, card, replace(asked, max_num_seqs=asked.max_num_seqs + more))
    assert greater.kv_available <= fewer.kv_available
    assert greater.kv_all >= fewer.kv_all


@given(models, cards, loads)
def test_more_accelerators_never_take_more_of_each(model, card, asked) -> None:
    one, two = (estimate(model, card, replace(asked, tensor=tensor)) for tensor in (asked.tensor, 2 * asked.tensor))
    assert two.weights <= one.weights
    if 2 * asked.tensor <= 8:
        assert two.kv_sequence < one.kv_sequence
        assert two.largest_context >= one.largest_context


@given(models, cards, loads, st.integers(0, 100000))
def test_asking_for_less_context_never_makes_it_worse(model, card, asked, less) -> None:
    shorter = replace(asked, max_model_len=max(SMALLEST_CONTEXT, asked.max_model_len - less))
    before, after = (ORDER.index(assess(model, card, each).verdict) for each in (asked, shorter))
    assert after >= before


@given(models, cards, loads)
def test_the_largest_context_is_the_last_that_fits(model, card, asked) -> None:
    found = estimate(model, card, asked)
    assert found.largest_context == 0 or kv_bytes(model, asked, found.largest_context) <= found.kv_available
    if found.largest_context < model.max_context:
        assert kv_bytes(model, asked, found.largest_context + 1) > found.kv_available


@given(models, cards, loads)
def test_windowed_layers_stop_growing(model, card, asked) -> None:
    window = model.sliding_window + asked.steps_in_flight * asked.max_num_batched_tokens
    block = kv_bytes(model, asked, window + asked.block_tokens) - kv_bytes(model, asked, window)
    page = asked.block_tokens * model.kv_bytes_per_token(tensor=asked.tensor, element_bytes=asked.kv_element_bytes)
    assert block == page * model.full_layers


@given(models, cards, loads)
def test_verdicts_are_deterministic_and_short(model, card, asked) -> None:
    found = assess(model, card, asked, others=accelerators())
    assert found == assess(model, card, asked, others=accelerators())
    assert 0 < len(found.message) <= 1024
    assert found.estimate is None or math.isfinite(found.estimate.full_sequences)
