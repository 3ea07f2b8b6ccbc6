"""GPT-2 and Llama are those of transformers: logits, loss and every gradient, on the same weights;
and a folder that one wrote the other reads.

Skipped without PyTorch and transformers, which nothing else here needs. Nothing is downloaded.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from funprop.train.pretrained.plan import planned
from tests.make_pretrained import LLAMA3, TINY, logits_of, model_of, tokens_of

pytestmark = pytest.mark.usefixtures("any_ranks")

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip(
    "safetensors.torch"
)  # now: what it knows of dtypes it learns when it is imported

GPT2 = TINY["gpt2"] | {"vocab_size": 11, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
LLAMA = {k: v for k, v in TINY["llama"].items() if "bias" not in k and k != "rope_parameters"}
LLAMA |= {"vocab_size": 11}
CONFIGS = {
    "gpt2": GPT2,
    "gpt2, gelu, untied": GPT2 | {"activation_function": "gelu", "tie_word_embeddings": False},
    "gpt2, relu, wide": GPT2 | {"activation_function": "relu", "n_inner": None, "n_layer": 3},
    "llama": LLAMA | {"head_dim": None, "num_attention_heads": 2},
    "llama, grouped": LLAMA,
    "llama, tied": LLAMA | {"tie_word_embeddings": True},
    "llama, one group, biases": LLAMA | {"num_key_value_heads": 1, "attention_bias": True},
    "llama, network biases": LLAMA | {"mlp_bias": True},
    "llama, llama3": LLAMA | {"rope_parameters": LLAMA3},
    "llama, linear": LLAMA
    | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}},
}


@pytest.fixture
def never_float32(monkeypatch):
    """Llama's norms and angles are computed in float32 there, whatever dtype the weights have."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def ours(plan, named):
    """Weights by their names, or gradients, as params of ours."""
    leaves = [row.read(shape, np.float64, named.get) for row, shape in plan.leaves.values()]
    return plan.tree.unflatten(leaves)


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped", "llama, llama3"])
def test_logits_loss_and_every_gradient_are_those_of_transformers(name, x64, never_float32):
    entries = CONFIGS[name]
    theirs = model_of(entries).double()
    tokens = tokens_of(entries)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]

    logits = theirs(torch.tensor(inputs)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(labels).long().flatten(), reduction="sum"
    )
    loss.backward()
    plan = planned(entries)
    whole = fp.language_model(plan.model, plan.vocabulary, tied=plan.tied, chunk=4)
    weights = {name: weight.detach().numpy() for name, weight in theirs.named_parameters()}
    grads = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    want = logits.detach().numpy(), loss.item(), ours(plan, grads)

    params = jax.tree.map(jnp.asarray, ours(plan, weights))
    own, head = (params, fp.unembedding(params)) if plan.tied else params
    y = plan.model.forward(own, jnp.asarray(inputs))[0] @ head.w.T
    got = fp.backprop(whole)(params, (jnp.asarray(inputs), jnp.asarray(labels)))
    chex.assert_trees_all_close((y, got.loss, got.grads), want, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_what_either_wrote_the_other_reads(name, tmp_path):
    """The same logits to float32 rounding, of their folder, of ours, and of theirs from ours."""
    entries = CONFIGS[name]
    theirs, tokens = model_of(entries), tokens_of(entries)
    want = logits_of(theirs, tokens)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = fp.from_pretrained(tmp_path / "theirs")
    np.testing.assert_allclose(loaded.logits(tokens), want, atol=2e-5)
    # And of a model of our own making, whose configuration says only what it must.
    folder = fp.to_pretrained(tmp_path / "ours", loaded.params, entries)
    again, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (logits_of(again.eval(), tokens) == want).all()
