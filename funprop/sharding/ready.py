"""Rules for the ways to shard that everybody uses."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh, PartitionSpec

from funprop.arguments import require_mesh
from funprop.checks import check_string
from funprop.sharding.rules import REST, Rules, chosen_by, names_of
from funprop.values import short

# Names within the models of funprop.models.
COLUMNS = ("*/qkv/w", "*/qkv/b", "*/hidden/w", "*/hidden/b")
ROWS = "*/output/w"
# The embedding's table, and a head that is not tied.
VOCABULARY = ("*embedding/table", "head")


def data_parallel_rules() -> Rules:
    """Every param on every device: only the batch is split.

    Example:
      >>> data_parallel_rules()
      [('*', P())]
    """
    return [(REST, PartitionSpec())]


def fsdp_rules(
    mesh: Mesh, axis: str = "data", *, least: int = 4096, rules: Rules | None = None
) -> Rules:
    """Every param cut in as many parts as there are devices along `axis`; fully sharded.

    Cut is the last dimension that divides and that `rules` leave whole; so the stack of layers
    under `repeat`, which a scan would have to gather whole, only where nothing else does.

    Args:
      mesh: on which.
      axis: of the mesh; it may be the one that splits the batch.
      least: how many numbers a param must have, or it stays whole: a small one is not worth it.
      rules: what is cut along other axes, as `tensor_parallel_rules()`; nothing if not given.

    Source: Rajbhandari et al., arXiv:1910.02054 (ZeRO, stage 3); Zhao et al., arXiv:2304.11277.

    Raises:
      ValueError: the mesh has no such axis.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> mesh = fp.make_mesh(data=1)
      >>> placed = fp.shardings(jnp.ones((64, 128)), mesh, fsdp_rules(mesh))
      >>> print(placed.spec)
      P(None, 'data')
    """
    require_mesh(mesh)
    check_string("axis", axis)
    if axis not in mesh.shape:
        raise ValueError(f"axis must be one of the mesh, {tuple(mesh.shape)}, got {short(axis)}")
    return FSDPRules(axis, mesh.shape[axis], least, rules or data_parallel_rules())


@dataclasses.dataclass(frozen=True)
class FSDPRules:
    """The rules of `fsdp_rules`, as a function of a path and a leaf."""

    axis: str
    parts: int
    least: int
    rules: Rules

    def __call__(self, path: str, leaf: Any) -> PartitionSpec:
        spec = chosen_by(self.rules)(path, leaf)
        taken = any(self.axis in names_of(axes) for axes in spec)
        if taken or leaf.size < self.least:
            return spec
        entries = [*spec, *[None] * (len(leaf.shape) - len(spec))]
        for i in reversed(range(len(leaf.shape))):
            if not names_of(entries[i]) and leaf.shape[i] % self.parts == 0:
                entries[i] = self.axis
                return PartitionSpec(*entries)
        return spec


def tensor_parallel_rules(axis: str = "model") -> Rules:
    """For `gpt` and `llama`: each product cut among the devices along `axis`.

    The first dense layer of attention and of the network is cut by columns, so by heads and hidden
    features, and the last by rows, which leaves one sum over devices behind each pair. The
    embedding and the head are cut by the vocabulary; give the loss `chunk=vocabulary` then, as
    every device has a chunk of its own.

    Source: Shoeybi et al., arXiv:1909.08053 (Megatron-LM), sections 3 and 5.

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> model, tokens = fp.gpt(50, features=8, depth=2, heads=2), jnp.zeros((1, 4), int)
      >>> params = jax.eval_shape(model.init, jax.random.key(0), tokens)
      >>> placed = fp.shardings(params, fp.make_mesh(model=1), tensor_parallel_rules())
      >>> qkv, out = placed.blocks.attention.qkv, placed.blocks.attention.output
      >>> print(qkv.w.spec, qkv.b.spec, out.w.spec, out.b.spec)
      P(None, None, 'model') P(None, 'model') P(None, 'model', None) P()
    """
    check_string("axis", axis)
    return [
        (COLUMNS, lambda leaf: _from_the_end(leaf, axis)),
        (ROWS, lambda leaf: _from_the_end(leaf, axis, None)),
        (VOCABULARY, PartitionSpec(axis)),
        (REST, PartitionSpec()),
    ]


def _from_the_end(leaf: Any, *entries: Any) -> PartitionSpec:
    """A spec for the last dimensions: in front there may be the one that `repeat` stacks along."""
    return PartitionSpec(*[None] * (len(leaf.shape) - len(entries)), *entries)
