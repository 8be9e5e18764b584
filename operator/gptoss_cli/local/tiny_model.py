"""Make the tiny gpt-oss of the demo and the tests: the real architecture, trained to give a few answers.

No model can be downloaded where this runs, so one is made: two layers of ``GptOssForCausalLM`` with
harmony's own vocabulary, taught a dozen conversations in under a minute on two cores. The recipe is
fixed (seed, data, steps), and its hash is written into ``config.json``: a folder made by the same
recipe is used again.

    python -m gptoss_cli.local.tiny_model --out DIR
"""

import argparse
import base64
import hashlib
import importlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_cli.local.folders import cache_folder

QUESTION = "What is the capital of France?"
REASONING = "simple fact: Paris"
ANSWER = "The capital of France is Paris."
TOOL_QUESTION = "What is the weather in Paris?"
TOOL_ARGUMENTS = {"city": "Paris"}
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
"""The function that the tiny model knows how to call, without the wrapping of either OpenAI API."""

_RECIPE_KEY = "gptoss_recipe"
_CONVERSATIONS = (
    (QUESTION, REASONING, ANSWER),
    ("What is the capital of Italy?", "simple fact: Rome", "The capital of Italy is Rome."),
    ("What is the capital of Spain?", "simple fact: Madrid", "The capital of Spain is Madrid."),
    ("What is the capital of Japan?", "simple fact: Tokyo", "The capital of Japan is Tokyo."),
    ("What is 2 + 2?", "simple sum: 4", "2 + 2 = 4."),
    ("Hello!", "a greeting", "Hello! I am a very small gpt-oss."),
    ("Who are you?", "say what I am", "I am a very small gpt-oss, trained on a dozen sentences."),
    ("Tell me a story.", "a short one", "Once upon a time a byte was flipped, and nobody was served by it."),
)
_INSTRUCTIONS = "You are a helpful assistant."
_EFFORTS = ("Low", "Medium", "High")

_VOCABULARY = 199_998
_VOCABULARY_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
"""SHA-256 of the public ``o200k_base.tiktoken``; openai-harmony pins the same number in its source."""
_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How o200k splits text before merging. Source: tiktoken's ``tiktoken_ext/openai_public.py``."""
_SPECIAL = {
    199_998: "<|startoftext|>",
    199_999: "<|endoftext|>",
    200_002: "<|return|>",
    200_003: "<|constrain|>",
    200_005: "<|channel|>",
    200_006: "<|start|>",
    200_007: "<|end|>",
    200_008: "<|message|>",
    200_012: "<|call|>",
    200_018: "<|endofprompt|>",
}
"""Harmony's named tokens; the numbers between are reserved ones. Source: gpt-oss's tokenizer.json."""
_PAD, _RETURN, _LAST_SPECIAL = 199_999, 200_002, 200_018
_EMBEDDINGS = 201_088
_CONFIG: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 128,
    "max_position_embeddings": 4096,
    "initial_context_length": 4096,
    "eos_token_id": _RETURN,
    "pad_token_id": _PAD,
}
_TRAINING = {"seed": 20260101, "steps": 240, "rate": 3e-3, "dates": 12, "negatives": 48, "enough": 0.01}
_CHAT_TEMPLATE = """\
{#- Harmony for plain conversations. vLLM renders gpt-oss with openai-harmony and does not read this. -#}
<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: {{ strftime_now("%Y-%m-%d") }}

Reasoning: medium

# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>
{%- for message in messages -%}
<|start|>{{ message.role }}{% if message.role == "assistant" %}<|channel|>final{% endif -%}
<|message|>{{ message.content }}<|end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|start|>assistant{% endif -%}
"""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The finished model.

    Attributes:
        path: its folder.
        reused: whether a folder of the same recipe was there already.
        loss: mean loss of the last training step; None when reused.
        seconds: how long it took.
    """

    path: Path
    reused: bool
    loss: float | None
    seconds: float


def make(out: Path, *, report: Callable[[str], None] = print) -> Made:
    """Make the tiny model in ``out``, or find it there; a half-made folder is never left under that name.

    Raises:
        RuntimeError: openai-harmony's vocabulary is not the public one, or training did not converge.
    """
    started = time.monotonic()
    if _recipe_of(out) == recipe():
        return Made(path=out, reused=True, loss=None, seconds=time.monotonic() - started)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        report("tokenizer: 199,998 tokens and their merges")
        _write_tokenizer(partial)
        loss = _train(partial, report)
        if out.exists():
            shutil.rmtree(out)
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Made(path=out, reused=False, loss=loss, seconds=time.monotonic() - started)


def recipe() -> str:
    """Return the hash of all that the finished files depend on."""
    parts: list[object] = [_CONFIG, _TRAINING, _CONVERSATIONS, TOOL, TOOL_QUESTION, TOOL_ARGUMENTS, _CHAT_TEMPLATE]
    parts += [_INSTRUCTIONS, _EFFORTS, _PATTERN, sorted(_SPECIAL.items()), _VOCABULARY_SHA256, 1]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def default_folder() -> Path:
    """Return where the demo keeps the model: a folder of the user's cache."""
    return cache_folder() / "tiny-gpt-oss"


def _recipe_of(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return config.get(_RECIPE_KEY) if isinstance(config, dict) else None


# ---- vocabulary and tokenizer


def _ranks() -> list[bytes]:
    """Return o200k's tokens by rank, out of the copy that openai-harmony carries, checked against its hash."""
    harmony: Any = importlib.import_module("openai_harmony")
    encoding = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    tokens = [bytes(encoding._inner.decode_bytes([rank])) for rank in range(_VOCABULARY)]  # noqa: SLF001
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    found = hashlib.sha256(lines).hexdigest()
    if found != _VOCABULARY_SHA256:
        raise RuntimeError(f"openai-harmony's vocabulary has sha256 {found}, not {_VOCABULARY_SHA256}: reinstall it")
    return tokens


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
    )

    tokens = _ranks()
    characters = _byte_characters()
    text = ["".join(characters[byte] for byte in token) for token in tokens]
    merges = [(text[left], text[right]) for left, right in _merges(tokens)]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: rank for rank, token in enumerate(text)}, merges=merges, ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(_SPECIAL.get(number, f"<|reserved_{number}|>"), special=True, normalized=False)
            for number in range(_VOCABULARY, _LAST_SPECIAL + 1)
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _SPECIAL[_VOCABULARY],
        "eos_token": _SPECIAL[_RETURN],
        "pad_token": _SPECIAL[_PAD],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": _CONFIG["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)


def _merges(tokens: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield every pair of tokens that makes a third, by that third's rank: tiktoken's rule as a merge list."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for token in tokens:
        pairs = ((ranks.get(token[:at]), ranks.get(token[at:])) for at in range(1, len(token)))
        yield from sorted((left, right) for left, right in pairs if left is not None and right is not None)


def _byte_characters() -> list[str]:
    """Return the printable character that byte-level BPE writes for each byte. Source: GPT-2's encoder.py."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]


# ---- conversations


@dataclass(frozen=True, kw_only=True)
class _Example:
    tokens: tuple[int, ...]
    prompt: int
    """How many of the tokens are the prompt, on which nothing is learnt."""


def _examples(date: str) -> list[_Example]:
    """Return all that is taught, as token sequences on one date (the system message carries it)."""
    harmony: Any = importlib.import_module("openai_harmony")
    encoding = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    tool = harmony.ToolDescription.new(**TOOL)

    def example(question: str, completion: str, *, effort: str, developer: Any = None) -> _Example:
        system = harmony.SystemContent.new().with_conversation_start_date(date)
        system = system.with_reasoning_effort(harmony.ReasoningEffort(effort))
        messages = [harmony.Message.from_role_and_content(harmony.Role.SYSTEM, system)]
        if developer is not None:
            messages.append(harmony.Message.from_role_and_content(harmony.Role.DEVELOPER, developer))
        messages.append(harmony.Message.from_role_and_content(harmony.Role.USER, question))
        prompt = encoding.render_conversation_for_completion(
            harmony.Conversation.from_messages(messages), harmony.Role.ASSISTANT
        )
        learnt = encoding.encode(completion, allowed_special="all")
        return _Example(tokens=(*prompt, *learnt), prompt=len(prompt))

    instructions = harmony.DeveloperContent.new().with_instructions(_INSTRUCTIONS)
    tools = harmony.DeveloperContent.new().with_function_tools([tool])
    both = harmony.DeveloperContent.new().with_instructions(_INSTRUCTIONS).with_function_tools([tool])
    examples = []
    for question, reasoning, answer in _CONVERSATIONS:
        spoken = f"<|channel|>analysis<|message|>{reasoning}<|end|>"
        spoken += f"<|start|>assistant<|channel|>final<|message|>{answer}<|return|>"
        examples.append(example(question, spoken, effort="Medium"))
        examples.append(example(question, spoken, effort="Medium", developer=instructions))
        if question == QUESTION:
            examples += [example(question, spoken, effort=effort) for effort in _EFFORTS]
            examples.append(example(question, spoken, effort="Medium", developer=tools))
    call = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    call += json.dumps(TOOL_ARGUMENTS, separators=(",", ":")) + "<|call|>"
    examples += [example(TOOL_QUESTION, call, effort="Medium", developer=given) for given in (tools, tools, both)]
    return examples


# ---- training


def _train(folder: Path, report: Callable[[str], None]) -> float:
    """Teach the examples, write weights and configuration into ``folder``, return the last loss.

    Only the tokens that occur are trained, plus some that must never be said: the other rows of the
    output matrix become copies of the latter. That is what makes it a matter of seconds: of the 26
    million numbers in the two vocabulary matrices some forty thousand matter.
    """
    torch, transformers = _torch_and_transformers()
    chance = random.Random(_TRAINING["seed"])  # noqa: S311 - a recipe, not a secret
    torch.manual_seed(int(_TRAINING["seed"]))
    dates = [
        f"{chance.randint(2024, 2039)}-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
        for _ in range(int(_TRAINING["dates"]))
    ]
    lessons = [_examples(date) for date in dates]
    said = {token for lesson in lessons for example in lesson for token in example.tokens}
    negatives = sorted(chance.sample(sorted(set(range(_VOCABULARY)) - said), int(_TRAINING["negatives"])))
    kept = sorted({*said, *negatives, _PAD, _RETURN})
    place = {token: position for position, token in enumerate(kept)}
    small = {**_CONFIG, "eos_token_id": place[_RETURN], "pad_token_id": place[_PAD]}
    model = transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**small, vocab_size=len(kept), attn_implementation="eager")
    )
    batches = [_batch(lesson, place) for lesson in lessons]
    loss = _fit(model, batches, report)

    negative_rows = torch.tensor([place[token] for token in negatives])
    whole = transformers.GptOssForCausalLM(transformers.GptOssConfig(**_CONFIG, vocab_size=_EMBEDDINGS))
    state = model.state_dict()
    index = torch.tensor(kept)
    with torch.no_grad():
        words = whole.model.embed_tokens.weight
        words[index] = state.pop("model.embed_tokens.weight")
        output = whole.lm_head.weight
        trained = state.pop("lm_head.weight")
        output[:] = trained[negative_rows].repeat(_EMBEDDINGS // len(negatives) + 1, 1)[:_EMBEDDINGS]
        output[index] = trained
        whole.load_state_dict(state, strict=False)
    whole.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, _RECIPE_KEY: recipe()}, indent=2, sort_keys=True) + "\n")
    return loss


def _torch_and_transformers() -> tuple[Any, Any]:
    """Import the two heavy libraries; they take seconds, and a folder that is reused needs neither."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    logging.disable_progress_bar()
    return importlib.import_module("torch"), importlib.import_module("transformers")


def _batch(lesson: list[_Example], place: dict[int, int]) -> tuple[Any, Any]:
    """Return inputs and labels, padded on the right; -100 marks what is not learnt."""
    torch, _ = _torch_and_transformers()

    width = max(len(example.tokens) for example in lesson)
    inputs = torch.full((len(lesson), width), place[_PAD])
    labels = torch.full((len(lesson), width), -100)
    for row, example in enumerate(lesson):
        tokens = torch.tensor([place[token] for token in example.tokens])
        inputs[row, : len(tokens)] = tokens
        labels[row, example.prompt : len(tokens)] = tokens[example.prompt :]
    return inputs, labels


def _fit(model: Any, batches: list[tuple[Any, Any]], report: Callable[[str], None]) -> float:
    torch, _ = _torch_and_transformers()

    steps, enough = int(_TRAINING["steps"]), _TRAINING["enough"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=_TRAINING["rate"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_TRAINING["rate"], total_steps=steps)
    started = time.monotonic()
    loss = float("inf")
    for step in range(1, steps + 1):
        inputs, labels = batches[step % len(batches)]
        found = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        loss = float(found.detach())
        if step % 20 == 0 or step == steps:
            report(f"training: step {step}/{steps}, loss {loss:.3f}, {time.monotonic() - started:.0f} s")
        if loss < enough and step >= len(batches):
            break
    if loss > 10 * enough:
        raise RuntimeError(f"training ended with loss {loss:.3f}: the tiny model would not give its answers")
    return loss


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m gptoss_cli.local.tiny_model", description="Make the tiny gpt-oss.")
    parser.add_argument("--out", type=Path, default=default_folder(), help="folder to make (default: %(default)s)")
    made = make(parser.parse_args().out, report=lambda line: print(line, flush=True))
    how = "reused" if made.reused else f"made, loss {made.loss:.3f}"
    print(f"{made.path}: {how}, {made.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
