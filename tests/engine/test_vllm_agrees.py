"""What is said of vLLM against the installed one: the KV cache, argument names. No engine is started."""

import json
import subprocess
import sys

import pytest

from gptoss_api.architecture import architecture_of
from gptoss_api.engine import resolve
from gptoss_api.engine_arguments import PERMITTED
from gptoss_api.fit import Load, kv_bytes
from gptoss_api.profiles import profiles
from gptoss_serving.engine import TELLS
from tests.builders import deployment

FRONTEND = {"enable_auto_tool_choice", "tool_call_parser"}
"""Arguments of the API server beside the engine; Ray LLM sorts them out."""

# In a process of its own: vLLM changes logging and signal handling of whoever imports it.
PROBE = """
import json, sys
import dataclasses
import torch
from types import SimpleNamespace
from vllm.distributed.utils import get_pp_indices
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
answers = []
for case in json.loads(sys.argv[1]):
    common = dict(block_size=case["block"], num_kv_heads=8 // case["tensor"], head_size=64,
                  dtype=torch.uint8 if case["element"] == 1 else torch.bfloat16)
    specs = {}
    for layer in range(case["layers"]):
        windowed = layer % 2 == 0
        specs[f"layer.{layer}"] = (
            SlidingWindowSpec(sliding_window=128, **common) if windowed else FullAttentionSpec(**common)
        )
    config = SimpleNamespace(
        max_in_flight_tokens=case["tokens"] * case["steps"],
        model_config=SimpleNamespace(max_model_len=case["context"]),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=case["tokens"]),
    )
    groups = kv_cache_utils._get_kv_cache_groups_uniform_page_size(specs)
    layers = max(len(group.layer_names) for group in groups)
    blocks = sum(
        -(-group.kv_cache_spec.max_memory_usage_bytes(config) // group.kv_cache_spec.page_size_bytes)
        for group in groups
    )
    answers.append(blocks * layers * groups[0].kv_cache_spec.page_size_bytes)
known = [name.replace("-", "_") for name in json.loads(sys.argv[2])]
strangers = sorted(set(known) - set(AsyncEngineArgs.__dataclass_fields__))
strangers += sorted(set(json.loads(sys.argv[4])) - set(FrontendArgs.__dataclass_fields__))
lines = json.loads(sys.argv[3])
taken = [{name: getattr(AsyncEngineArgs(model="x", **line), name) for name in line} for line in lines]
layers = [max(end - start for start, end in (get_pp_indices(whole, rank, size) for rank in range(size)))
          for whole in (24, 36) for size in range(1, 9)]
print("ANSWERS", json.dumps({"bytes": answers, "strangers": strangers, "taken": taken, "layers": layers}))
"""

CASES = [
    {
        "model": model,
        "context": context,
        "tokens": tokens,
        "steps": steps,
        "tensor": tensor,
        "element": element,
        "block": block,
        "pipeline": pipeline,
    }
    for model in ("gpt-oss-20b", "gpt-oss-120b")
    for context in (256, 8192, 131072)
    for tokens, steps in ((1024, 1), (8192, 2))
    for tensor, element, block, pipeline in ((1, 2, 16, 1), (2, 2, 64, 1), (8, 1, 16, 1), (4, 2, 16, 2), (1, 2, 16, 4))
]


@pytest.mark.engine
@pytest.mark.timeout(700)
def test_the_kv_cache_is_counted_and_arguments_are_named_as_vllm_does() -> None:
    shapes = {name: architecture_of(name) for name in ("gpt-oss-20b", "gpt-oss-120b")}
    asked = [{**case, "layers": shapes[case["model"]].stage_layers(case["pipeline"])} for case in CASES]
    spread = ({"tensor": 2, "expert": True}, {"tensor": 4, "pipeline": 2}, {"tensor": 8, "pipeline": 2, "expert": True})
    lines = [
        {
            name: value
            for name, value in resolve(deployment(parallelism=each).spec, profile).arguments.items()
            if name not in FRONTEND
        }
        for each in spread
        for profile in profiles()
    ]
    names = {name for profile in profiles() for rule in profile.rules for name in rule.arguments} | set(PERMITTED)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROBE,
            json.dumps(asked),
            json.dumps(sorted(names)),
            json.dumps(lines),
            json.dumps(sorted(FRONTEND | TELLS.keys())),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")), None)
    assert line is not None, done.stderr[-3000:]
    ours = [
        kv_bytes(
            shapes[case["model"]],
            Load(
                max_model_len=case["context"],
                max_num_seqs=1,
                max_num_batched_tokens=case["tokens"],
                utilization=0.9,
                tensor=case["tensor"],
                pipeline=case["pipeline"],
                kv_element_bytes=case["element"],
                block_tokens=case["block"],
                steps_in_flight=case["steps"],
            ),
            case["context"],
        )
        for case in CASES
    ]
    assert json.loads(line.removeprefix("ANSWERS ")) == {
        "bytes": ours,
        "strangers": [],
        "taken": lines,
        "layers": [shape.stage_layers(size) for shape in shapes.values() for size in range(1, 9)],
    }
