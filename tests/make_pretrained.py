"""Makes tests/data/pretrained: tiny models of transformers, and the logits that it computes.

Run where transformers and PyTorch are (the `references` extra): `python -m tests.make_pretrained`.
What it makes is checked in, so that the tests need neither.
"""

import json
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "pretrained"
VOCABULARY = 258  # bytes, an end of text, and one more that the tokenizer has not
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TINY = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_positions": 32,
        "n_embd": 12,
        "n_layer": 2,
        "n_head": 3,
        "n_inner": 20,
    },
    "llama": {  # all at once: grouped queries, heads of another size, biases, stretched positions
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "rope_parameters": LLAMA3,
    },
}


def model_of(entries, seed=0):
    """Transformers' own, of random weights, none of them zero or one."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    classes = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
    config = transformers.AutoConfig.for_model(**entries)
    model = getattr(transformers, classes[entries["model_type"]])(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = rng.normal(scale=0.3, size=weight.shape) + ("norm" in name or "ln_" in name)
            weight.copy_(torch.tensor(drawn))
    return model


def tokens_of(entries, seed=1):
    return np.random.default_rng(seed).integers(0, entries["vocab_size"], (1, 24), np.int32)


def logits_of(model, tokens):
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.float().numpy()


def tokenizer():
    """A token for each byte, as GPT-2 writes them, and the end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


def main():
    for name, entries in TINY.items():
        folder = DATA / name
        model = model_of(entries)
        # Llama's in several files, with an index.
        model.save_pretrained(folder, max_shard_size="16KB" if name == "llama" else "1GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = tokens_of(entries)
        np.savez(folder / "logits.npz", tokens=tokens, logits=logits_of(model, tokens))
    (DATA / "gpt2" / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer().to_str())))


if __name__ == "__main__":
    main()
