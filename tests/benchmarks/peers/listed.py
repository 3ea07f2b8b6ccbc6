"""The peers: whose file, in which environment, and how long what its user writes is."""

import ast
from pathlib import Path
from typing import NamedTuple

WRITTEN = Path(__file__).parent / "written"


class Peer(NamedTuple):
    """One way to write and run the four works.

    Attributes:
      says: its name, for people.
      file: in `written`.
      environment: of `environments`.
      switch: a global of the file that is set to True.
      unused: functions of the file that this one does not call.
      works: those that it has, all if not given.
      own_init: whether its first weights cannot be drawn as the others' are.
    """

    says: str
    file: str
    environment: str
    switch: str = ""
    unused: tuple[str, ...] = ()
    works: tuple[str, ...] = ("digits", "cnn", "gpt", "large")
    own_init: bool = False

    @property
    def path(self) -> Path:
        return WRITTEN / f"{self.file}.py"

    def lines(self, work: str) -> int:
        """Of user code, without imports, blank lines and comments: the work's function, and all of
        the file that it calls."""
        text = self.path.read_text()
        nodes = {name: node for node in ast.parse(text).body for name in _defined(node)}
        wanted, found = [work], set()
        while wanted:
            name = wanted.pop()
            if name in nodes and name not in found and name not in self.unused:
                found.add(name)
                wanted += [n.id for n in ast.walk(nodes[name]) if isinstance(n, ast.Name)]
        rows = text.splitlines()
        kept = set()
        for node in (nodes[name] for name in found):
            kept |= set(range(_first(node) - 1, node.end_lineno or 0))
        return sum(bool(rows[i].strip()) and rows[i].lstrip()[0] != "#" for i in kept)


PEERS = {
    "plain_jax": Peer("plain JAX", "plain_jax", "jax", unused=("by_epoch",)),
    # Without the CNN: within a loop XLA for CPUs runs convolutions by its slow path. Two epochs of
    # it took more than four minutes.
    "jax_scan": Peer(
        "plain JAX, an epoch as one scan",
        "plain_jax",
        "jax",
        "SCANNED",
        unused=("by_batch",),
        works=("digits", "gpt", "large"),
    ),
    "funprop": Peer("funprop", "funprop_", "funprop"),
    "flax_nnx": Peer("Flax NNX", "flax_nnx", "flax"),
    "flax_linen": Peer("Flax Linen", "flax_linen", "flax"),
    "equinox": Peer("Equinox", "equinox_", "equinox"),
    "haiku": Peer("Haiku", "haiku_", "haiku"),
    "keras": Peer("Keras on JAX", "keras_", "keras"),
    "torch": Peer("PyTorch", "torch_", "torch"),
    "torch_compiled": Peer("PyTorch, compiled", "torch_", "torch", "COMPILED"),
    "sklearn": Peer(
        "scikit-learn", "sklearn_", "scikit-learn", works=("digits", "large"), own_init=True
    ),
}


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _first(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
