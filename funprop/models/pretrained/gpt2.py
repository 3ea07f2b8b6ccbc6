"""GPT-2 as Hugging Face's transformers writes it (`GPT2LMHeadModel`), as `fp.gpt`."""

from __future__ import annotations

import functools
from collections.abc import Callable

from funprop.layer import Layer
from funprop.layers import gelu, gelu_tanh, relu, silu
from funprop.models.gpt import gpt
from funprop.models.pretrained.config import Config, Family
from funprop.models.pretrained.rows import Row, dense, norm

ACTIVATIONS = {
    **{"gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh},
    **{"gelu": gelu, "relu": relu, "silu": silu, "swish": silu},
}


def model(config: Config, rewrite: Callable[[Layer], Layer]) -> Layer:
    """`fp.gpt` by their configuration. Dropout, which changes no output, is left out."""
    config.only("scale_attn_weights", True, True)
    config.only("scale_attn_by_inverse_layer_idx", False, False)
    config.only("add_cross_attention", False, False)
    return gpt(
        config.number("vocab_size", 50257),
        features=config.number("n_embd", 768),
        depth=config.number("n_layer", 12),
        heads=config.number("n_head", 12),
        longest=config.number("n_positions", 1024),
        hidden=config.number("n_inner", None),
        activation=config.choice("activation_function", "gelu_new", ACTIVATIONS)(),
        eps=config.real("layer_norm_epsilon", 1e-5),
        rewrite=rewrite,
    )


def rows(config: Config) -> list[Row]:
    """Their dense layers (`Conv1D`) hold `[i, o]`, as ours."""
    block = "transformer.h.{}"
    as_ours = functools.partial(dense, turned=False, bias=True)
    return [
        Row("embedding/table", ("transformer.wte.weight",)),
        Row("positions/table", ("transformer.wpe.weight",)),
        *norm("blocks/attention/norm", f"{block}.ln_1", bias=True),
        *as_ours("blocks/attention/qkv", f"{block}.attn.c_attn"),
        *as_ours("blocks/attention/output", f"{block}.attn.c_proj"),
        *norm("blocks/network/norm", f"{block}.ln_2", bias=True),
        *as_ours("blocks/network/hidden", f"{block}.mlp.c_fc"),
        *as_ours("blocks/network/output", f"{block}.mlp.c_proj"),
        *norm("norm", "transformer.ln_f", bias=True),
    ]


GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    prefix="transformer.",
    buffers=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",  # the causal mask, in older files
    tied=True,
    model=model,
    rows=rows,
    small={"vocab_size": 7, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 8},
)
