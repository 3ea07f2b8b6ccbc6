"""Llama as Hugging Face's transformers writes it (`LlamaForCausalLM`), as `fp.llama`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from funprop.layer import Layer
from funprop.layers.rotary import speeds, stretched
from funprop.models.gpt import llama
from funprop.models.pretrained.config import Config, Family
from funprop.models.pretrained.rows import Row, dense, norm


def model(config: Config, rewrite: Callable[[Layer], Layer]) -> Layer:
    """`fp.llama` by their configuration."""
    config.choice("hidden_act", "silu", {"silu": None, "swish": None})
    config.only("pretraining_tp", 1, 1)
    heads, kv_heads, size = _heads(config)
    return llama(
        config.number("vocab_size", 32000),
        features=config.number("hidden_size", 4096),
        depth=config.number("num_hidden_layers", 32),
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        hidden=config.number("intermediate_size", 11008),
        rotary=_rotary(config, size),
        eps=config.real("rms_norm_eps", 1e-6),
        attention_bias=config.flag("attention_bias", False),
        network_bias=config.flag("mlp_bias", False),
        rewrite=rewrite,
    )


def rows(config: Config) -> list[Row]:
    """Their dense layers hold `[o, i]`; those that read one input are one of ours."""
    heads, kv_heads, size = _heads(config)
    block = "model.layers.{}"
    turned = functools.partial(dense, turned=True)
    in_attention, in_network = (config.flag(name, False) for name in ("attention_bias", "mlp_bias"))
    qkv = (heads * size, kv_heads * size, kv_heads * size)
    both = (config.number("intermediate_size", 11008),) * 2
    q, k, v = (f"{block}.self_attn.{name}_proj" for name in "qkv")
    gate, up = (f"{block}.mlp.{name}_proj" for name in ("gate", "up"))
    return [
        Row("embedding/table", ("model.embed_tokens.weight",)),
        *norm("blocks/attention/norm", f"{block}.input_layernorm", bias=False),
        *turned("blocks/attention/qkv", q, k, v, widths=qkv, bias=in_attention),
        *turned("blocks/attention/output", f"{block}.self_attn.o_proj", bias=in_attention),
        *norm("blocks/network/norm", f"{block}.post_attention_layernorm", bias=False),
        *turned("blocks/network/hidden", gate, up, widths=both, bias=in_network),
        *turned("blocks/network/output", f"{block}.mlp.down_proj", bias=in_network),
        *norm("norm", "model.norm", bias=False),
    ]


def _heads(config: Config) -> tuple[int, int, int]:
    """How many of queries, how many of keys and values, and their size."""
    heads = config.number("num_attention_heads", 32)
    kv_heads = config.number("num_key_value_heads", None) or heads
    size = config.number("head_dim", None) or config.number("hidden_size", 4096) // heads
    return heads, kv_heads, size


def _rotary(config: Config, size: int) -> float | tuple[float, ...]:
    """The base of the positions, or their speeds: `rope_parameters` since version 5 of
    transformers, `rope_theta` and `rope_scaling` before."""
    which = "rope_parameters" if config.given("rope_parameters") else "rope_scaling"
    how: Config = config.part(which)
    base = how.real("rope_theta", config.real("rope_theta", 10_000.0))
    old = how.choice("type", "default", KINDS)  # its name in the oldest files
    kind = how.choice("rope_type", old, KINDS)
    how.only("partial_rotary_factor", 1.0, 1.0)
    return base if kind == "default" else kind_of(kind, how, speeds(size, base))


KINDS: dict[Any, str] = {kind: kind for kind in ("default", "linear", "llama3")}


def kind_of(kind: str, how: Config, plain: tuple[float, ...]) -> tuple[float, ...]:
    """The speeds for sequences longer than those that the model was first made for."""
    factor = how.real("factor")
    if kind == "linear":
        return tuple(speed / factor for speed in plain)
    low, high = how.real("low_freq_factor"), how.real("high_freq_factor")
    return stretched(plain, factor, low, high, how.real("original_max_position_embeddings"))


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    prefix="model.",
    buffers=r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",  # in older files
    tied=False,
    model=model,
    rows=rows,
    small={
        **{"vocab_size": 7, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4},
    },
)
