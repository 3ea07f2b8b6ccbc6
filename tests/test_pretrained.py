"""Other people's weights: out of a folder of transformers and into one, the same in every bit.

tests/data/pretrained holds tiny models and the logits that transformers computes of them
(tests/make_pretrained.py), so that nothing here needs it; tests/test_pretrained_references.py does.
"""

import functools
import importlib.util
import json
import re
import runpy
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import funprop as fp
from funprop.models.pretrained import Config
from funprop.models.pretrained.llama import model as llama_of

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "pretrained"


def logits(name):
    with np.load(DATA / name / "logits.npz") as stored:
        return stored["tokens"], stored["logits"]


def stored(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def entries(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def gpt2(tmp_path):
    return shutil.copytree(DATA / "gpt2", tmp_path / "gpt2")


@pytest.fixture
def llama(tmp_path):
    return shutil.copytree(DATA / "llama", tmp_path / "llama")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_are_those_of_transformers_and_weights_go_back_bit_by_bit(name, tmp_path):
    loaded = fp.from_pretrained(DATA / name)
    tokens, want = logits(name)
    np.testing.assert_allclose(loaded.logits(tokens), want, atol=1e-5)

    again = fp.to_pretrained(tmp_path / "again", loaded.params, loaded)
    before, after = stored(DATA / name), stored(again)
    assert before.keys() == after.keys()
    assert all((before[k] == after[k]).all() for k in before)
    assert entries(again) == entries(DATA / name)
    assert (again / "tokenizer.json").exists() == (DATA / name / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bfloat16_stays_unless_asked(name, tmp_path):
    half = tmp_path / "half"
    tokens, want = logits(name)
    fp.to_pretrained(half, fp.from_pretrained(DATA / name, dtype=jnp.bfloat16).params, DATA / name)
    assert entries(half)["dtype"] == "bfloat16"
    loaded = fp.from_pretrained(half)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    assert abs(np.float32(loaded.logits(tokens)) - want).max() < 0.2
    wide = fp.from_pretrained(half, dtype="float32")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(wide.params)} == {"float32"}
    np.testing.assert_allclose(wide.logits(tokens), want, atol=0.2)


def test_older_files_of_the_bare_model_are_read(gpt2):
    """Without the prefix, with the causal mask as a buffer and the tied head stored beside."""
    tensors = {k.removeprefix("transformer."): v for k, v in stored(gpt2).items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.float32))
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    save_file(tensors, gpt2 / "model.safetensors")
    tokens, want = logits("gpt2")
    np.testing.assert_allclose(fp.from_pretrained(gpt2).logits(tokens), want, atol=1e-5)
    tensors["lm_head.weight"] += 1
    save_file(tensors, gpt2 / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight must be wte.weight, as tie_word"):
        fp.from_pretrained(gpt2)


def test_the_names_of_positions_before_version_5_mean_the_same():
    new = entries(DATA / "llama")
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    scaling = dict(new["rope_parameters"])
    old["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    old["rope_scaling"] = scaling
    x = jnp.arange(20)[None]

    @functools.partial(jax.jit, static_argnums=0)
    def of(told):
        model = llama_of(Config(json.loads(told), "config.json"), lambda block: block)
        return model.forward(model.init(jax.random.key(0), x), x)[0]

    assert (of(json.dumps(old)) == of(json.dumps(new))).all()
    scaling["type"], plain = "linear", old | {"rope_scaling": None}
    assert not jnp.allclose(of(json.dumps(old)), of(json.dumps(new))) and not jnp.allclose(
        of(json.dumps(old)), of(json.dumps(plain))
    )


def test_text_to_text(gpt2):
    loaded = fp.from_pretrained(gpt2)
    ids = loaded.tokenizer.encode("def añ").ids
    made = fp.generate(loaded.model, *loaded.parts(), jnp.asarray([ids]), 5)
    assert made.shape == (1, len(ids) + 5)
    assert loaded.tokenizer.decode(made[0].tolist()).startswith("def añ")
    (gpt2 / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        fp.from_pretrained(gpt2).tokenizer  # noqa: B018  # it is read when asked for
    (gpt2 / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        fp.from_pretrained(gpt2).tokenizer  # noqa: B018


def test_token_by_token_a_model_of_stretched_positions_writes_what_its_logits_say():
    loaded = fp.from_pretrained(DATA / "llama")
    made = fp.generate(loaded.model, *loaded.parts(), logits("llama")[0][:, :9], 5)
    likeliest = jax.jit(loaded.logits)(made).argmax(-1)
    assert made[0, 9:].tolist() == likeliest[0, 8:-1].tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_adapters_are_trained_merged_and_written(name, tmp_path):
    loaded = fp.from_pretrained(DATA / name)
    whole, where = loaded.objective(), "*/qkv"
    small = fp.low_rank(whole, where, 2, scale=0.5)
    params = fp.adapted(whole, where, 2, loaded.params, jax.random.key(0))
    tokens = jnp.asarray(logits(name)[0])
    training = fp.step(fp.backprop(small), optax.sgd(1.0))
    state, _ = training.update(training.init(params, jax.random.key(1)), (tokens, tokens))
    with pytest.raises(ValueError, match=r"merged\(params\) makes such"):
        fp.to_pretrained(tmp_path / "new", state.params, loaded)
    assert not (tmp_path / "new").exists()
    folder = fp.to_pretrained(tmp_path / "new", fp.merged(state.params, scale=0.5), loaded)
    again = fp.from_pretrained(folder)
    changed = [k for k, v in stored(DATA / name).items() if (v != stored(folder)[k]).any()]
    assert changed and all(re.search(r"(c_attn|[qkv]_proj)\.weight", k) for k in changed)
    adapted, plain = (
        jax.jit(lambda params, layer=layer: layer.forward(params, (tokens, tokens))[0].total)
        for layer in (small, whole)
    )
    np.testing.assert_allclose(plain(again.params), adapted(state.params), rtol=1e-6)


# What is done to a folder, and what is said of it.
def told(**new):
    def change(folder):
        (folder / "config.json").write_text(json.dumps({**entries(folder), **new}))

    return change


def with_tensors(change):
    def of(folder):
        tensors = stored(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return of


def renamed(old, new):
    return with_tensors(lambda tensors: tensors.update({new: tensors.pop(old)}))


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


H0 = "transformer.h.0.attn.c_attn.weight"
GPT2 = {
    "no folder": (shutil.rmtree, "there is no folder .*gpt2: huggingface-cli download"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no JSON": (text("config.json", "{"), "config.json must be a JSON object"),
    "no object": (text("config.json", "[1]"), "config.json must be a JSON object"),
    "no type": (told(model_type=None), "model_type must be there, one of gpt2, llama"),
    "bert": (told(model_type="bert"), "model_type 'bert' is not supported; supported: gpt2, llama"),
    "head": (
        told(architectures=["GPT2ForSequenceClassification"]),
        "architectures .* is not supported; supported: GPT2LMHeadModel, GPT2Model",
    ),
    "activation": (
        told(activation_function="mish"),
        "activation_function 'mish' is not supported; supported: gelu_new, ",
    ),
    "scores": (told(scale_attn_by_inverse_layer_idx=True), "inverse_layer_idx True is not supp"),
    "cross": (told(add_cross_attention=True), "add_cross_attention True is not supported"),
    "quantised": (told(quantization_config={"bits": 4}), "quantization_config is not supported"),
    "string": (told(n_layer="2"), "n_layer must be a positive whole number, got '2'"),
    "zero": (told(n_embd=0), "n_embd must be a positive whole number, got 0"),
    "eps": (told(layer_norm_epsilon=-1), "layer_norm_epsilon must be a positive number, got -1"),
    "uneven": (told(n_head=5), "config.json: heads must divide features, got 5 and 12"),
    "tie": (told(tie_word_embeddings="yes"), "tie_word_embeddings must be true or false"),
    "deeper": (told(n_layer=3), "another model .*: there is no transformer.h.2.ln_1.weight"),
    "shallower": (told(n_layer=1), "another model .*: the model has no transformer.h.1.attn"),
    "wider": (
        told(vocab_size=300),
        r"transformer.wte.weight must have shape \(300, 12\), got \(258, 12\)",
    ),
    "untied": (told(tie_word_embeddings=False), "there is no lm_head.weight"),
    "renamed": (renamed(H0, "transformer.h.0.w"), f"there is no {H0}"),
    "whole numbers": (
        with_tensors(lambda t: t.update({H0: t[H0].astype(np.int32)})),
        f"{H0} must be of floating dtype, got int32",
    ),
    "two dtypes": (
        with_tensors(lambda t: t.update({H0: t[H0].astype(np.float16)})),
        "blocks/attention/qkv/w is of tensors of one dtype, got float16 .* and float32",
    ),
    "float64": (
        with_tensors(lambda t: t.update({k: np.float64(v) for k, v in t.items()})),
        "float64 is a dtype that JAX has only with jax_enable_x64",
    ),
    "cut": (cut, "model.safetensors is damaged, or no safetensors file"),
    "garbage": (text("model.safetensors", "x" * 99), "model.safetensors is damaged"),
    "none": (
        lambda f: (f / "model.safetensors").unlink(),
        "must hold model.safetensors or model.safetensors.index.json, and has neither",
    ),
}
INDEX = "model.safetensors.index.json"
LLAMA = {
    "yarn": (
        told(rope_parameters={"rope_type": "yarn", "factor": 2.0}),
        "rope_parameters.rope_type 'yarn' is not supported; supported: default, linear, llama3",
    ),
    "factor": (
        told(rope_parameters={"rope_type": "llama3"}),
        "rope_parameters.factor must be a positive number, got nothing",
    ),
    "part": (told(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5 is"),
    "act": (told(hidden_act="gelu"), "hidden_act 'gelu' is not supported; supported: silu"),
    "parallel": (told(pretraining_tp=2), "pretraining_tp 2 is not supported; supported: 1"),
    "groups": (told(num_key_value_heads=3), "config.json: kv_heads must divide heads, got 3 and 4"),
    "odd": (told(head_dim=3), "config.json: .*rotary heads must have an even size, got 3"),
    "no bias": (told(mlp_bias=False), "the model has no model.layers.0.mlp.down_proj.bias"),
    "index": (text(INDEX, "{}"), "must have a weight_map"),
    "elsewhere": (text(INDEX, '{"weight_map": {"a": "../a"}}'), "must name files beside it"),
    "shard": (
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        "model-00002-of-00003.safetensors",
    ),
    "swapped": (
        lambda f: shutil.copy(
            f / "model-00001-of-00003.safetensors", f / "model-00002-of-00003.safetensors"
        ),
        "model-00002-of-00003.safetensors must hold model.layers.*, as .*index.json says",
    ),
}


@pytest.mark.parametrize("case", [*GPT2, *LLAMA])
def test_what_cannot_be_read_is_said_in_one_sentence(case, gpt2, llama):
    folder = gpt2 if case in GPT2 else llama
    change, said = (GPT2 | LLAMA)[case]
    change(folder)
    with pytest.raises((ValueError, OSError), match=said) as raised:
        fp.from_pretrained(folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_a_number_that_is_not_finite_is_told(gpt2):
    with_tensors(lambda tensors: tensors[H0].fill(np.nan))(gpt2)
    with pytest.warns(UserWarning, match=f"{H0} holds NaN"):
        fp.from_pretrained(gpt2)


def test_what_cannot_be_written_is_said_and_nothing_is(tmp_path, llama):
    loaded = fp.from_pretrained(DATA / "gpt2")
    params, new = loaded.params, tmp_path / "new"
    table = params.embedding.table
    wrong = {
        "no embedding/table": {"w": table},
        r"embedding/table expected shape \(258, 12\), got \(1, 12\)": params._replace(
            embedding=fp.EmbeddingParams(table[:1])
        ),
        "embedding/table expected an array": params._replace(embedding=fp.EmbeddingParams("no")),
    }
    for said, bad in wrong.items():
        with pytest.raises((ValueError, TypeError), match=said):
            fp.to_pretrained(new, bad, loaded)
    with pytest.raises(ValueError, match=r"of another model than config\.json: params have no"):
        fp.to_pretrained(new, params, DATA / "llama")
    with pytest.raises(TypeError, match="like must be a Pretrained, a folder or a dictionary"):
        fp.to_pretrained(new, params, 3)
    with pytest.raises(TypeError, match="folder must be a path"):
        fp.to_pretrained(3, params, loaded)
    assert not new.exists()
    with pytest.raises(ValueError, match="folder must hold no model in many files"):
        fp.to_pretrained(llama, fp.from_pretrained(llama).params, llama)
    with pytest.raises(ValueError, match="dtype must be one of"):
        fp.from_pretrained(llama, dtype="int8")


def test_a_write_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    from funprop.train.pretrained import writing

    loaded = fp.from_pretrained(DATA / "gpt2")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write", full)
    with pytest.raises(OSError, match="No space left"):
        fp.to_pretrained(tmp_path / "new", loaded.params, loaded)
    assert not (tmp_path / "new").exists()


def test_every_block_of_the_page_runs(gpt2, monkeypatch):
    """docs/pretrained.md, from the top down; what imports transformers where that is there."""
    monkeypatch.chdir(gpt2.parent)
    page = (ROOT / "docs" / "pretrained.md").read_text()
    names, known = {}, importlib.util.find_spec("transformers")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for block in blocks:
        if known or "transformers" not in block:
            with jax.numpy_dtype_promotion("standard"):
                exec(block, names)
    assert len(blocks) == 6 and fp.from_pretrained("tuned").tied


@pytest.mark.slow
def test_the_example_learns_the_text(gpt2, monkeypatch):
    monkeypatch.chdir(gpt2.parent)
    Path("text.txt").write_text("the same again and again " * 60)
    lora = runpy.run_path(str(ROOT / "examples" / "lora.py"))["main"]
    with jax.numpy_dtype_promotion("standard"):
        folder = lora("gpt2", "text.txt", "tuned", length=16, epochs=20)
    before, after = fp.from_pretrained("gpt2"), fp.from_pretrained(folder)
    ids = jnp.asarray([before.tokenizer.encode("the same again").ids])
    batch = ids[:, :-1], ids[:, 1:]
    losses = [m.objective().forward(m.params, batch)[0].mean for m in (before, after)]
    assert losses[1] < losses[0]
