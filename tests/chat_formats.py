"""Chat templates of every family, in our own words, on a small tokenizer trained here; a scripted engine."""

from __future__ import annotations

import functools
import random
from typing import Any

from mua.engines import Completion, Sampling
from mua.formats import ChatFormat, ToolStyle
from mua.tokenizer import FRAMES, train_tokenizer

TEXTS = [
    "You work for a shop. Please cancel my order o3, thank you! The order is open.",
    '<tool_call>{"name": "get_order", "arguments": {"order_id": "o3"}}</tool_call>',
    '{"status": "open", "items": 1, "gift": false} # Tools <tools> </tools> <tool_response> </tool_response>',
    "Déjà vu: naïve café, 東京, 🙂. Shall I cancel order o12 from 2024? Yes, do it. ###STOP###",
] * 3

CHATML = """{%- for m in messages -%}
{%- if loop.first and m.role != 'system' -%}
{{ '<|im_start|>system\nBe of help.<|im_end|>\n' }}{%- endif -%}
{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""

_QWEN_HEAD = """{%- if tools -%}
{{ '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' -%}{{ messages[0].content + '\n\n' }}{%- endif -%}
{{ 'Tools in <tools>:' }}{%- for t in tools -%}{{ '\n' }}{{ t | tojson }}{%- endfor -%}
{{ '\nCall one with <tool_call>{"name": N, "arguments": A}</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' -%}
{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif -%}"""

_QWEN_TOOL = """{%- elif m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}
{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\n' }}{%- endif -%}"""

_QWEN_CALLS = """{%- for c in m.tool_calls or [] -%}
{%- if (loop.first and m.content) or not loop.first -%}{{ '\n' }}{%- endif -%}
{{ '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- c.function.arguments | tojson }}{{ '}\n</tool_call>' }}
{%- endfor -%}"""

QWEN25 = (
    _QWEN_HEAD
    + """{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' -%}{{ '<|im_start|>assistant\n' + m.content }}"""
    + _QWEN_CALLS
    + """{{ '<|im_end|>\n' }}"""
    + _QWEN_TOOL
    + """{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""
)

QWEN3 = (
    _QWEN_HEAD
    + """{%- set at = namespace(query=0) -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set at.query = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' -%}
{%- set thought = m.reasoning_content or '' -%}
{{ '<|im_start|>assistant\n' }}
{%- if loop.index0 > at.query and (loop.last or thought) -%}
{{ '<think>\n' + thought + '\n</think>\n\n' }}
{%- endif -%}{{ m.content }}"""
    + _QWEN_CALLS
    + """{{ '<|im_end|>\n' }}"""
    + _QWEN_TOOL
    + """{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}
{%- endif -%}"""
)

LLAMA3 = """{{ bos_token }}
{%- if messages[0].role == 'system' -%}{%- set told = messages[0].content -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set told = '' -%}{%- set rest = messages -%}{%- endif -%}
{{ '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + (date_string or strftime_now('%d %b %Y')) }}
{{- '\n' + told + '<|eot_id|>' }}
{%- for m in rest -%}
{%- if m.role == 'tool' -%}
{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{ m.content | tojson }}{{ '<|eot_id|>' }}
{%- elif m.tool_calls -%}
{%- if m.tool_calls | length != 1 -%}{{ raise_exception('one call at a time') }}{%- endif -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + m.tool_calls[0].function.name }}
{{- '", "parameters": ' }}{{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|eot_id|>' }}
{%- else -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
{%- if tools and loop.first -%}{%- for t in tools -%}{{ t | tojson }}{{ '\n' }}{%- endfor -%}{%- endif -%}
{{ m.content | trim + '<|eot_id|>' }}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"""

FAMILIES = {
    "builtin": (None, "<|end|>", {}),
    "chatml": (CHATML, "<|im_end|>", {}),
    "qwen25": (QWEN25, "<|im_end|>", {}),
    "qwen3": (QWEN3, "<|im_end|>", {}),
    "qwen3-thinking": (QWEN3, "<|im_end|>", {"thinking": True}),
    "llama3": (LLAMA3, "<|end_of_text|>", {}),
}


def make_tokenizer(vocab_size: int = 512) -> Any:
    return train_tokenizer(TEXTS, vocab_size, [*FRAMES, "get_order", "order_id"])


@functools.cache
def make_format(family: str, tool_style: ToolStyle = "schema") -> ChatFormat:
    template, eos, options = FAMILIES[family]
    tokenizer = make_tokenizer()
    if template is not None:
        marks = {
            "chatml": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
            "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"],
        }["llama3" if family == "llama3" else "chatml"]
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [*marks, "<|python_tag|>", "###STOP###"], "eos_token": eos}
        )
        tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
        tokenizer.chat_template = template
    return ChatFormat.of(tokenizer, tool_style=tool_style, **options)


class ScriptEngine:
    """Gives the scripted completions in order, then random ids; keeps every prompt it read by session.

    A script entry is (ids, stop reason).
    """

    def __init__(self, script=(), *, vocab: int = 300, context: int = 100_000, stop: int = 0, seed: int = 0):
        self.script = list(script)
        self.vocab = vocab
        self.context = context
        self.stop = stop
        self.random = random.Random(seed)
        self.seen: dict[str, list[tuple[list[int], list[int]]]] = {}
        self.asked: list[Sampling] = []
        self.released: list[str] = []

    async def generate(self, prompt_ids, sampling, session):
        assert len(prompt_ids) + sampling.max_tokens <= self.context
        if self.script:
            ids, reason = self.script.pop(0)
        else:
            ids = [self.random.randrange(self.vocab) for _ in range(self.random.randrange(12))]
            ids = [i for i in ids if i not in sampling.stop_ids]
            reason = self.random.choice(("stop", "length"))
            if reason == "stop":
                ids = [*ids, self.random.choice(sampling.stop_ids)]
        self.seen.setdefault(session, []).append((list(prompt_ids), list(ids)))
        self.asked.append(sampling)
        return Completion(list(ids), [-1.0 - 0.001 * i for i in range(len(ids))], reason)

    def release(self, session):
        self.released.append(session)

    async def close(self): ...
