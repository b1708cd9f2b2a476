"""Configurations of mergekit in the shapes that its users write: for folders of language models, with gradients over
layers, filters, slices, several documents. The tests of the importer build them, those of the peers compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS, WIDTH, WORDS = 5, 8, 16
_LAYER = ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
          "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
MODELS = ("base", "chat", "code", "maths")

EXAMPLES = {
    "linear": """
models:
  - model: chat
    parameters: { weight: 1.0 }
  - model: code
    parameters: { weight: 0.3 }
  - model: maths
    parameters: { weight: 0.5 }
merge_method: linear
dtype: float16
""",
    "gradient-slerp": """
slices:
  - sources:
      - { model: base, layer_range: [0, 5] }
      - { model: chat, layer_range: [0, 5] }
merge_method: slerp
base_model: base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5  # for the rest
dtype: bfloat16
""",
    "ties": """
models:
  - model: chat
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: code
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: maths
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0.2
merge_method: ties
base_model: base
parameters: { normalize: true, int8_mask: true }
dtype: float16
""",
    "filters": """
models:
  - model: base
  - model: chat
    parameters:
      weight:
        - { filter: q_proj, value: 0.9 }
        - { filter: mlp, value: [0.2, 0.6] }
        - value: 0.4
  - model: code
    parameters: { weight: 0.25 }
merge_method: task_arithmetic
base_model: base
parameters: { normalize: false, lambda: 0.9 }
dtype: bfloat16
""",
    "negative": """
models:
  - { model: chat, parameters: { weight: 1.0 } }
  - { model: code, parameters: { weight: -0.4 } }
merge_method: task_arithmetic
base_model: base
dtype: float32
out_dtype: bfloat16
""",
    "model_stock": """
models: [{ model: chat }, { model: code }, { model: maths }]
merge_method: model_stock
base_model: base
dtype: bfloat16
""",
    "fusion": """
models: [{ model: chat }, { model: base }]
merge_method: arcee_fusion
base_model: base
dtype: float32
""",
    "dare_ties": """
models:
  - model: base
    # no parameters necessary for the base
  - model: chat
    parameters: { density: 0.53, weight: 0.4 }
  - model: code
    parameters: { density: 0.53, weight: 0.3 }
merge_method: dare_ties
base_model: base
parameters: { int8_mask: true }
dtype: bfloat16
""",
    "documents": """
name: first
models:
  - { model: chat, parameters: { weight: 0.6 } }
  - { model: code, parameters: { weight: 0.4 } }
merge_method: linear
dtype: float16
---
merge_method: task_arithmetic
base_model: base
models:
  - { model: first, parameters: { weight: 0.7 } }
  - { model: maths, parameters: { weight: 0.5 } }
dtype: float16
""",
}
REFUSED = {
    "stack": ("""
slices:
  - sources: [{ model: chat, layer_range: [0, 3] }]
  - sources: [{ model: code, layer_range: [1, 5] }]
merge_method: passthrough
dtype: float16
""", "slices that stack layers"),
    "moe": ("""
base_model: base
gate_mode: hidden
experts:
  - { source_model: chat, positive_prompts: [chat] }
  - { source_model: code, positive_prompts: [code] }
""", "a mixture of experts (mergekit-moe)"),
    "tokens": ("""
models: [{ model: chat, parameters: { weight: 1 } }]
merge_method: linear
tokenizer: { source: union }
""", "a union of tokenizers"),
}  # fmt: skip


def write_models(folder: Path, dtype: type[np.floating] = np.float16) -> None:
    """Language models of a few layers, as folders."""
    shapes = {"model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes["lm_head.weight"] = (WORDS, WIDTH)
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{part}.weight": _shape(part) for part in _LAYER}
    rng = np.random.default_rng(17)
    base = {name: (rng.standard_normal(shape) * 0.1).astype(dtype) for name, shape in shapes.items()}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "intermediate_size": 2 * WIDTH, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": WORDS,
        "tie_word_embeddings": False, "torch_dtype": np.dtype(dtype).name,
    }  # fmt: skip
    for model in MODELS:
        tensors = base
        if model != "base":
            tensors = {k: (v + rng.standard_normal(v.shape) * 0.02).astype(dtype) for k, v in base.items()}
        (folder / model).mkdir()
        save_file(tensors, folder / model / "model.safetensors")
        (folder / model / "config.json").write_text(json.dumps(config))


def _shape(part: str) -> tuple[int, ...]:
    if "norm" in part:
        return (WIDTH,)
    return {"mlp.gate_proj": (2 * WIDTH, WIDTH), "mlp.up_proj": (2 * WIDTH, WIDTH),
            "mlp.down_proj": (WIDTH, 2 * WIDTH)}.get(part, (WIDTH, WIDTH))  # fmt: skip
