"""Functions of params on any pytree: names, roles, masks, tables and files are what a walk over the
paths says, whatever leaves and nesting there are."""

import tempfile
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp

DTYPES = ("float32", "bfloat16", "float16", "int8", "uint8", "bool", "int32")
NAMES = ("w", "kernel", "bias", "scale", "table", "a")
arrays = st.builds(
    lambda shape, dtype: jnp.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype),
    st.sampled_from([(), (1,), (0, 2), (2, 3), (2, 1, 2)]),
    st.sampled_from(DTYPES),
)
leaves = st.one_of(arrays, arrays.map(np.asarray), arrays.map(lambda leaf: np.asarray(leaf).T))
trees = st.recursive(
    st.one_of(leaves, st.none()),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
        st.lists(inner, max_size=2),
        st.tuples(inner, inner),
        inner.map(fp.Frozen),
        inner.map(fp.Statistic),
        st.builds(fp.DenseParams, inner, inner),
    ),
    max_leaves=6,
)
many = settings(max_examples=40, deadline=None, derandomize=True)


def paths(tree):
    """The names that people write: what `Frozen` and `Statistic` put around has none."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path]
        found.append(("/".join(k for k in keys if k not in ("frozen", "statistic")), leaf, keys))
    return found


@many
@given(tree=trees)
def test_names_roles_and_masks(tree):
    walked = paths(tree)
    named = fp.by_name(tree)
    assert list(named) == list(dict.fromkeys(name for name, *_ in walked))
    told, decayed = fp.roles(tree), fp.decayed(tree)
    structure = jax.tree.structure(tree)
    assert jax.tree.structure(told) == jax.tree.structure(decayed) == structure
    roles, mask = jax.tree.leaves(told), jax.tree.leaves(decayed)
    assert set(roles) <= {"weight", "bias", "scale", "table", "statistic"}
    still = [not {"frozen", "statistic"} & set(keys) for *_, keys in walked]
    assert mask == [s and r in ("weight", "table") for s, r in zip(still, roles, strict=True)]
    left = jax.tree.leaves(fp.trained(tree))
    assert [id(x) for x in left] == [id(x) for (_, x, _), s in zip(walked, still, strict=True) if s]
    plain, seen = fp.untap(tree)
    assert jax.tree.structure(plain) == structure and not jax.tree.leaves(seen)


@many
@given(tree=trees, data=st.data())
def test_a_pattern_means_what_is_below_it(tree, data):
    names = [name for name, *_ in paths(tree)]
    # `None` may stand for a part that is frozen, which what is meant may lie in.
    holes = any(leaf is None for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None))
    if not any(names):
        with (
            suppress(ValueError) if holes else pytest.raises(ValueError, match="must match a name")
        ):
            fp.where("w", tree)
        return
    assert all(jax.tree.leaves(fp.where("*", tree)))
    chosen = data.draw(st.sampled_from([name for name in names if name]))
    want = [name == chosen or name.startswith(chosen + "/") for name in names]
    assert jax.tree.leaves(fp.where(chosen, tree)) == want
    refused = pytest.raises(ValueError, match=r"^the pattern 'none of these' must match a name")
    with suppress(ValueError) if holes else refused:
        fp.where((chosen, "none of these"), tree)


@many
@given(tree=trees)
def test_a_table_adds_up(tree):
    if len(fp.by_name(tree)) < len(jax.tree.leaves(tree)):
        return  # two of one name, a table has a row for each name
    table = fp.param_table(tree)
    assert str(table).splitlines()[-1].startswith(f"{sum(x.size for x in jax.tree.leaves(tree)):,}")
    assert f"{sum(x.size for x in jax.tree.leaves(fp.trained(tree))):,} trained" in str(table)


@many
@given(tree=trees)
def test_a_file_gives_back_every_bit(tree):
    walked = paths(tree)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.safetensors"
        if len({name for name, *_ in walked}) < len(walked):
            with pytest.raises(ValueError, match="name"):
                fp.save(file, tree)
            return
        fp.save(file, tree)
        again = fp.load(file, tree)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for got, want in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
