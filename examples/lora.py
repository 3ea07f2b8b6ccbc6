"""LoRA by hand: adapters beside GPT-2 or Llama, trained on a text, and a folder for transformers.

    python examples/lora.py FOLDER TEXT OUT

FOLDER is a model as transformers writes it, with its tokenizer.json. `funprop finetune` is the same
with checkpoints, curves and what is held out.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp

RANK, WHERE = 8, "*/qkv"


def main(folder: str, text: str, out: str, length: int = 128, epochs: int = 3) -> Path:
    loaded = fp.from_pretrained(folder, rewrite=fp.remat)
    ids = np.array(loaded.tokenizer.encode(Path(text).read_text()).ids, np.int32)
    rows = (len(ids) - 1) // length
    inputs, targets = (ids[i : i + rows * length].reshape(rows, length) for i in (0, 1))

    # The objective, the same with adapters alone trained, and its params.
    objective = loaded.objective()
    model = fp.low_rank(objective, WHERE, RANK)
    params = fp.adapted(objective, WHERE, RANK, loaded.params, jax.random.key(0))

    training = fp.step(fp.backprop(model), optax.adamw(5e-4))
    state = training.init(params, jax.random.key(1))
    result = fp.fit(training, state, (inputs, targets), epochs=epochs, batch_size=min(8, rows))
    merged = fp.merged(result.state.params)

    prompt = jnp.asarray(ids[None, :8])
    made = fp.generate(loaded.model, *loaded.parts(merged), prompt, 20, key=jax.random.key(2))
    print(loaded.tokenizer.decode(made[0].tolist()))
    return fp.to_pretrained(out, merged, loaded)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    print(f"Written to {main(sys.argv[1], sys.argv[2], sys.argv[3])}")
