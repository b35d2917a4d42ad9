"""Sizes of the models that the scripts of `perf/` make, with random weights: arguments of `tiny_llama`."""

SHAPES: dict[str, dict[str, int]] = {
    "toy": {"vocab_size": 512, "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 128},
    "quickstart": {"vocab_size": 1100, "layers": 3, "hidden": 192, "heads": 4, "head_dim": 64},
    "smollm2": {
        "vocab_size": 49152, "layers": 30, "hidden": 576, "heads": 9, "kv_heads": 3, "intermediate": 1536,
    },
    "smollm2-1.7b": {
        "vocab_size": 49152, "layers": 24, "hidden": 2048, "heads": 32, "kv_heads": 32, "intermediate": 8192,
    },
}  # fmt: skip
