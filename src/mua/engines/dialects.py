"""How vLLM and SGLang are asked for tokens and given weights, as the sources of vLLM 0.32 and SGLang 0.5.23
have it.

Invariant: what is read out of an answer are the ids that the server sampled, each with its log-probability
under the temperature-scaled distribution; an answer that does not show all of that is refused, in words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from . import Sampling


class Refused(Exception):
    """An answer that is no completion as asked for; the words say why, as the rest of a sentence."""


class Busy(Refused):
    """The server gave the request up (it is being updated, say): it may be asked again."""


Finish = Literal["stop", "length"]
Sampled = tuple[list[int], list[float], Finish]
Call = tuple[str, Mapping[str, Any]]
"""(path, JSON body) of a request."""


class Dialect(Protocol):
    """What differs between the two."""

    kind: str
    generate_path: str
    version_path: str
    """GET: which weights it has; see `version`."""
    before_top_p: bool
    """Log-probabilities are those before top_p."""
    same_scale: str
    """How it is made to give log-probabilities after temperature."""
    update_help: str
    """How it is started so that its weights can be updated."""

    def body(self, prompt: Sequence[int], sampling: Sampling, most: int, model: str) -> dict[str, Any]:
        """The request for `most` tokens."""
        ...

    def read(self, data: Any, prompt: Sequence[int]) -> Sampled:
        """Ids, log-probabilities and reason of an answer. Raises Refused."""
        ...

    def update(self, folder: str, version: str) -> Sequence[Call]:
        """The requests that put the weights of a folder in place of those it has, in order."""
        ...

    def after_failure(self) -> Sequence[Call]:
        """The requests after which a server whose update broke off takes requests again."""
        ...

    def version(self, data: Any) -> str:
        """The name that its weights were given with them."""
        ...


class Vllm:
    """`/v1/completions` with token ids both ways. The rest needs VLLM_SERVER_DEV_MODE=1 at the server."""

    kind = "vllm"
    generate_path = "/v1/completions"
    version_path = "/weight_info"
    before_top_p = False
    same_scale = "start it with --logprobs-mode processed_logprobs"
    update_help = "start it with VLLM_SERVER_DEV_MODE=1 in its environment"

    def body(self, prompt: Sequence[int], sampling: Sampling, most: int, model: str) -> dict[str, Any]:
        return {
            "model": model,
            "prompt": prompt,
            "max_tokens": most,
            "temperature": sampling.temperature,
            "seed": sampling.seed % 2**63,
            "stop_token_ids": list(sampling.stop_ids),
            "logprobs": 0,
            "return_token_ids": True,
            # Exactly our stop ids, and nothing of the defaults in the model's generation_config.json.
            "ignore_eos": True,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "skip_special_tokens": False,
        }

    def read(self, data: Any, prompt: Sequence[int]) -> Sampled:
        choices = data.get("choices") if isinstance(data, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            raise Refused(f"answered no completion: {_sample(data)}")
        ids = choice.get("token_ids")
        if ids is None:
            raise Refused("answered without token_ids: this version does not know return_token_ids")
        if choice.get("prompt_token_ids") != list(prompt):
            raise Refused("answered to another prompt than it was given (prompt_token_ids differ)")
        logprobs = choice.get("logprobs")
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        return _checked(ids, values, choice.get("finish_reason"))

    def update(self, folder: str, version: str) -> Sequence[Call]:
        return (
            ("/pause?mode=abort", {}),
            ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}}),
            ("/reset_prefix_cache", {}),
            ("/update_weight_version", {"new_version": version}),
            ("/resume", {}),
        )

    def after_failure(self) -> Sequence[Call]:
        return (("/resume", {}),)

    def version(self, data: Any) -> str:
        return str(data.get("weight_version")) if isinstance(data, dict) else ""


class Sglang:
    """`/generate` with input_ids; weights from a folder by one request, which empties the cache, too."""

    kind = "sglang"
    generate_path = "/generate"
    version_path = "/model_info"
    before_top_p = True
    same_scale = "start it without SGLANG_RETURN_ORIGINAL_LOGPROB"
    update_help = "use a version that has /update_weights_from_disk and /model_info"

    def body(self, prompt: Sequence[int], sampling: Sampling, most: int, model: str) -> dict[str, Any]:
        del model  # it serves one
        return {
            "input_ids": prompt,
            "return_logprob": True,
            "sampling_params": {
                "max_new_tokens": most,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                # It stops at the model's own end of text, too (then the answer is refused, unless that is one
                # of ours), and with ignore_eos at nothing.
                "stop_token_ids": list(sampling.stop_ids),
                "ignore_eos": not sampling.stop_ids,
                # Obeyed by a server with --enable-deterministic-inference.
                "sampling_seed": sampling.seed % 2**31,
                "skip_special_tokens": False,
                "no_stop_trim": True,
            },
        }

    def read(self, data: Any, prompt: Sequence[int]) -> Sampled:
        about = data.get("meta_info") if isinstance(data, dict) else None
        if not isinstance(about, dict):
            raise Refused(f"answered no completion: {_sample(data)}")
        reason = about.get("finish_reason")
        reason = reason.get("type") if isinstance(reason, dict) else reason
        if reason == "abort":
            raise Busy("gave the request up")
        pairs = about.get("output_token_logprobs")
        if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) >= 2 for p in pairs):
            raise Refused("answered without output_token_logprobs")
        ids = [pair[1] for pair in pairs]
        if data.get("output_ids") != ids:
            raise Refused(
                f"answered {_count(data.get('output_ids'))} output_ids and {len(ids)} ids with "
                "log-probabilities, which are not the same"
            )
        if about.get("prompt_tokens") != len(prompt):
            raise Refused(
                f"read {about.get('prompt_tokens')} tokens of a prompt that has {len(prompt)}: it changed it"
            )
        return _checked(ids, [pair[0] for pair in pairs], reason)

    def update(self, folder: str, version: str) -> Sequence[Call]:
        body = {"model_path": folder, "weight_version": version, "abort_all_requests": True}
        return (("/update_weights_from_disk", {**body, "flush_cache": True}),)

    def after_failure(self) -> Sequence[Call]:
        return ()

    def version(self, data: Any) -> str:
        return str(data.get("weight_version")) if isinstance(data, dict) else ""


DIALECTS: Mapping[str, Dialect] = {"vllm": Vllm(), "sglang": Sglang()}


def _checked(ids: Any, logprobs: Any, reason: Any) -> Sampled:
    """Whole and plausible, or Refused."""
    if reason == "abort":
        raise Busy("gave the request up")
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise Refused(f"answered ids that are none: {_sample(ids)}")
    if not ids:
        raise Refused("answered no token")
    if not isinstance(logprobs, list) or len(logprobs) != len(ids):
        raise Refused(f"answered {len(ids)} ids with {_count(logprobs)} log-probabilities")
    if not all(
        isinstance(p, int | float) and not isinstance(p, bool) and math.isfinite(p) and p < 1e-3
        for p in logprobs
    ):
        raise Refused(f"answered log-probabilities that are none: {_sample(logprobs)}")
    if reason not in ("stop", "length"):
        raise Refused(f"ended for a reason that was not asked for: {reason!r}")
    return ids, [float(p) for p in logprobs], reason


def _count(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else "no"


def _sample(value: Any) -> str:
    return json.dumps(value)[:200]
