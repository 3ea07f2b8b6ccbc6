"""An environment for each library, at pinned versions, made once under build/peers."""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / "build" / "peers"

JAX = ("jax==0.10.2", "jaxlib==0.10.2", "numpy==2.4.6")
OPTAX = (*JAX, "optax==0.2.8", "chex==0.1.92")
# Releases of November 2026 or before; PyTorch's is the build for CPUs where pip finds one.
PINNED: dict[str, tuple[str, ...]] = {
    "jax": OPTAX,
    "flax": (*OPTAX, "flax==0.12.8"),
    "equinox": (*OPTAX, "equinox==0.13.8"),
    "haiku": (*OPTAX, "dm-haiku==0.0.17"),
    "keras": (*JAX, "keras==3.15.1"),
    "torch": ("torch==2.13.0", "numpy==2.4.6"),
    "scikit-learn": ("scikit-learn==1.9.1", "numpy==2.4.6"),
    "funprop": OPTAX,  # itself is taken from the checkout
}


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is made if it is not there or not as pinned."""
    folder = CACHE / name
    python, done = folder / "bin" / "python", folder / "pinned.txt"
    wanted = "\n".join(PINNED[name])
    if not done.exists() or done.read_text() != wanted:
        print(f"making the environment of {name}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q", *PINNED[name]]
        subprocess.run(pip, check=True)
        done.write_text(wanted)
    return python
