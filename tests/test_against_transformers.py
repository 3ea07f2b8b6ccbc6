"""GPT-2 and Llama are those of transformers: logits, loss and every gradient, on the same weights.

Skipped without PyTorch and transformers, which nothing else here needs. Nothing is downloaded.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY, FEATURES, DEPTH, HEADS, TIME = 11, 16, 2, 4, 7


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=TIME + 2,
        n_embd=FEATURES,
        n_layer=DEPTH,
        n_head=HEADS,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = fp.gpt(VOCABULARY, features=FEATURES, depth=DEPTH, heads=HEADS, longest=TIME + 2)
    return transformers.GPT2LMHeadModel(config), model, True, of_gpt2


def llama():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=FEATURES,
        intermediate_size=24,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
    )
    model = fp.llama(VOCABULARY, features=FEATURES, depth=DEPTH, heads=HEADS, kv_heads=2, hidden=24)
    return transformers.LlamaForCausalLM(config), model, False, of_llama


def of_gpt2(named):
    """Weights by their names, or gradients, as the params of `fp.gpt` with a tied head."""
    block = stacked(named, "transformer.h")
    attend = dense(block, "attn.c_attn"), (), dense(block, "attn.c_proj")
    network = dense(block, "mlp.c_fc"), (), dense(block, "mlp.c_proj")
    model = (
        (named["transformer.wte.weight"], named["transformer.wpe.weight"]),
        ((((norm(block, "ln_1"), attend),), ((norm(block, "ln_2"), network),)),),
        norm(named, "transformer.ln_f"),
    )
    return (model,)


def of_llama(named):
    """The same for `fp.llama` and its head; dense layers that read one input are one of ours."""
    block = stacked(named, "model.layers")

    def turned(*names):
        w = np.concatenate([block[f"{name}.weight"] for name in names], 1)
        return fp.DenseParams(w.swapaxes(1, 2), None)

    q, k, v = (f"self_attn.{name}_proj" for name in "qkv")
    attend = turned(q, k, v), (), turned("self_attn.o_proj")
    network = turned("mlp.gate_proj", "mlp.up_proj"), ((),), turned("mlp.down_proj")
    before, between = norm(block, "input_layernorm"), norm(block, "post_attention_layernorm")
    model = (
        (named["model.embed_tokens.weight"],),
        ((((before, attend),), ((between, network),)),),
        norm(named, "model.norm"),
    )
    return model, fp.LinearParams(named["lm_head.weight"], None)


def stacked(named, prefix):
    """Of all blocks at once, by their names within a block."""
    inside = [n.removeprefix(f"{prefix}.0.") for n in named if n.startswith(f"{prefix}.0.")]
    return {n: np.stack([named[f"{prefix}.{i}.{n}"] for i in range(DEPTH)]) for n in inside}


def norm(named, name):
    return fp.NormParams(named[f"{name}.weight"], named.get(f"{name}.bias"))


def dense(named, name):
    return fp.DenseParams(named[f"{name}.weight"], named[f"{name}.bias"])


@pytest.fixture
def never_float32(monkeypatch):
    """Llama's norms and angles are computed in float32 there, whatever dtype the weights have."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_logits_loss_and_every_gradient_are_those_of_transformers(make, x64, never_float32):
    theirs, model, tied, of = make()
    theirs.double()
    rng = np.random.default_rng(0)
    for weight in theirs.parameters():
        weight.data = torch.tensor(rng.normal(scale=0.3, size=weight.shape))
    tokens = rng.integers(0, VOCABULARY, (2, TIME + 1))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]

    logits = theirs(torch.tensor(inputs)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(labels).flatten(), reduction="sum"
    )
    loss.backward()
    weights = {name: weight.detach().numpy() for name, weight in theirs.named_parameters()}
    grads = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    want = logits.detach().numpy(), loss.item(), of(grads)

    params = jax.tree.map(jnp.asarray, of(weights))
    head = fp.unembedding(params[0]) if tied else params[1]
    y = model.forward(params[0], jnp.asarray(inputs))[0] @ head.w.T
    whole = fp.language_model(model, VOCABULARY, tied=tied, chunk=4)
    got = fp.backprop(whole)(params, (jnp.asarray(inputs), jnp.asarray(labels)))
    chex.assert_trees_all_close((y, got.loss, got.grads), want, rtol=1e-11, atol=1e-12)
