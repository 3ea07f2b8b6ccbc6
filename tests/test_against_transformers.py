"""GPT-2 and Llama are those of transformers: logits, loss and every gradient, on the same weights.

Skipped without PyTorch and transformers, which nothing else here needs. Nothing is downloaded.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp

pytestmark = pytest.mark.usefixtures("any_ranks")

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


def of_gpt2(like, named):
    """Weights by their names, or gradients, as params of `fp.gpt` with a tied head, as `like`."""
    block = stacked(named, "transformer.h")
    attention = like.blocks.attention._replace(
        norm=norm(block, "ln_1"),
        qkv=dense(block, "attn.c_attn"),
        output=dense(block, "attn.c_proj"),
    )
    network = like.blocks.network._replace(
        norm=norm(block, "ln_2"), hidden=dense(block, "mlp.c_fc"), output=dense(block, "mlp.c_proj")
    )
    return like._replace(
        embedding=fp.EmbeddingParams(named["transformer.wte.weight"]),
        positions=fp.EmbeddingParams(named["transformer.wpe.weight"]),
        blocks=like.blocks._replace(attention=attention, network=network),
        norm=norm(named, "transformer.ln_f"),
    )


def of_llama(like, named):
    """The same for `fp.llama` and its head; dense layers that read one input are one of ours."""
    block = stacked(named, "model.layers")

    def turned(*names):
        w = np.concatenate([block[f"{name}.weight"] for name in names], 1)
        return fp.DenseParams(w.swapaxes(1, 2), None)

    q, k, v = (f"self_attn.{name}_proj" for name in "qkv")
    blocks = like.llama.blocks
    attention = blocks.attention._replace(
        norm=norm(block, "input_layernorm"),
        qkv=turned(q, k, v),
        output=turned("self_attn.o_proj"),
    )
    network = blocks.network._replace(
        norm=norm(block, "post_attention_layernorm"),
        hidden=turned("mlp.gate_proj", "mlp.up_proj"),
        output=turned("mlp.down_proj"),
    )
    model = like.llama._replace(
        embedding=fp.EmbeddingParams(named["model.embed_tokens.weight"]),
        blocks=blocks._replace(attention=attention, network=network),
        norm=norm(named, "model.norm"),
    )
    return like._replace(llama=model, head=fp.LinearParams(named["lm_head.weight"], None))


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
    whole = fp.language_model(model, VOCABULARY, tied=tied, chunk=4)
    batch = jnp.asarray(inputs), jnp.asarray(labels)
    like = jax.eval_shape(whole.init, jax.random.key(0), batch)
    weights = {name: weight.detach().numpy() for name, weight in theirs.named_parameters()}
    grads = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    want = logits.detach().numpy(), loss.item(), of(like, grads)

    params = jax.tree.map(jnp.asarray, of(like, weights))
    own, head = (params, fp.unembedding(params)) if tied else params
    y = model.forward(own, batch[0])[0] @ head.w.T
    got = fp.backprop(whole)(params, batch)
    chex.assert_trees_all_close((y, got.loss, got.grads), want, rtol=1e-11, atol=1e-12)
