"""The laws that let a model be mapped like a tree, and the rules that let functions compose."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import funprop as fp
from funprop.layer import leaf_of
from funprop.maps import map_nodes
from funprop.names import child_names, empty
from tests.cases import ALL, COMPOSITE, OPTIMISED, build, quickly

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_rebuild_law(case):
    """`rebuild(*children)` is the same node: same name and children, same function."""
    again = case.layer.rebuild(*case.layer.children)
    assert (again.name, again.children) == (case.layer.name, case.layer.children)
    params, x, key = build(case)

    def whole(layer):
        y, kept = layer.forward(params, x, key)
        return layer.init(jax.random.key(0), x), y, layer.backward(params, kept, y)

    got, want = (
        str(jax.make_jaxpr(functools.partial(whole, layer))()) for layer in (again, case.layer)
    )
    assert got == want


@pytest.mark.parametrize("case", COMPOSITE, ids=lambda case: case.id)
def test_mirror_law(case):
    """Child i, its params and its residuals stand at place i; so do its dparams.

    Params are found by `split`, and put together again by `join`. Each child is replaced by one
    that marks what it makes; the marks must be found in place.
    """
    layer = case.layer
    n = len(layer.children)
    params, x, key = build(case)
    seen = {}

    def marked(i, child):
        def forward(p, x, key=None):
            y, kept = child.forward(p, x, key)
            seen[i] = p
            return y, {f"kept by {i}": kept}

        def backward(p, kept, dy):
            dp, dx = child.backward(p, kept[f"kept by {i}"], dy)
            return {f"dparams of {i}": dp}, dx

        return leaf_of(child, forward=forward, backward=backward)

    parts = layer.split(params)
    assert len(parts) == n
    assert jax.tree.structure(layer.join(params, parts)) == jax.tree.structure(params)
    rebuilt = layer.rebuild(*(marked(i, child) for i, child in enumerate(layer.children)))
    y, residuals = jax.eval_shape(rebuilt.forward, params, x, key)
    # Those that run forward again keep nothing of their children: None in their places.
    remat = case.id in ("remat", "remat-keep", "gated", "reversible", "reversible-copies")
    for i in range(n):
        inside = residuals[i]
        assert inside is None if remat else set(inside) == {f"kept by {i}"}
        if not layer.shares:
            assert jax.tree.structure(seen[i]) == jax.tree.structure(parts[i])
    if layer.shares:
        (own,) = parts
        assert (own[0] if layer.hands_on else own) is params
        return  # its dparams pass through the pullback of expand, which is tested elsewhere
    dparams, _ = jax.eval_shape(rebuilt.backward, params, residuals, y)
    marks = layer.split(dparams)
    for i in range(n):
        if i and layer.flat:  # without params, so without a place for them
            assert marks[i] == empty(layer.children[i]) and not jax.tree.leaves(seen[i])
        else:
            assert set(marks[i]) == {f"dparams of {i}"}
    want = layer.join(params, [{f"dparams of {i}": part} for i, part in enumerate(parts)])
    assert type(dparams) is type(want)


def test_map_layers_reaches_every_leaf_and_keeps_the_rest():
    model = fp.serial(fp.dense(2), fp.residual(fp.repeat(fp.serial(fp.relu(), fp.tanh()), 2)))
    upper = fp.map_layers(lambda layer: fp.named(layer.name.upper(), layer), model)
    assert repr(upper) == "serial(DENSE, residual(repeat(serial(RELU, TANH))))"


def test_paths_name_every_node():
    model = fp.serial(fp.dense(2), fp.relu(), fp.dense(2), fp.named("head", fp.dense(1)))
    assert child_names(model) == ("dense_0", "relu", "dense_1", "head")
    paths = []
    map_nodes(lambda path, node: (paths.append(path), node)[1], fp.residual(model))
    assert paths == [
        *("dense_0", "relu", "dense_1", "head"),
        *("", ""),  # a node of one child has its child's path
    ]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case.key else [pytest.mark.slow]) for case in ALL],
    ids=lambda case: case.id,
)
def test_no_key_means_inference(case):
    params, x, _ = build(case)
    assert "random" not in str(jax.make_jaxpr(case.layer.forward)(params, x))


def test_dropout_draws_each_time_anew_and_keeps_the_mean():
    layer, x = fp.dropout(0.25), jnp.ones(100_000)
    (a, _), (b, _) = (layer.forward((), x, jax.random.key(i)) for i in range(2))
    assert not (a == b).all()
    assert set(a.tolist()) == {0.0, float(jnp.float32(1 / 0.75))}
    assert abs(float(a.mean()) - 1) < 0.01


def test_repeat_is_its_copies_one_after_the_other():
    block, x = fp.serial(fp.dense(4), fp.tanh()), jnp.ones((2, 4))
    deep = fp.repeat(block, 3)
    params = deep.init(jax.random.key(0), x)
    y = x
    for i in range(3):
        y = block.forward(jax.tree.map(lambda leaf, i=i: leaf[i], params), y)[0]
    chex.assert_trees_all_close(deep.forward(params, x)[0], y, rtol=1e-6)
    assert not (params.dense.w[0] == params.dense.w[1]).all()


@pytest.mark.parametrize("rewrite", [lambda layer: layer, fp.remat], ids=["plain", "remat"])
def test_recorded_surfaces_in_place_and_metrics_by_name(rewrite):
    def forward(params, x):
        return x, fp.Recorded({"sum": x.sum(0), "count": jnp.float32(len(x))})

    watch = fp.layer(forward=forward, backward=lambda p, r, dy: ((), dy), name="watch")
    model = rewrite(fp.serial(fp.dense(2), watch))
    batch = jnp.ones((4, 3)), jnp.zeros((4, 2))
    objective = fp.objective(model, fp.mean_squared(), error=fp.absolute_error)
    gradient = fp.backprop(objective)(objective.init(jax.random.key(0), batch), batch)
    (found,) = [
        record
        for record in jax.tree.leaves(
            gradient.recorded, is_leaf=lambda node: isinstance(node, fp.Recorded)
        )
        if record.metric is None
    ]
    assert found.value["count"] == 4
    assert gradient.metrics["error"].weight == 8


def test_remat_keeps_less_and_costs_no_memory_back():
    """Under a scan; of unrolled layers XLA merges the second forward with the first, barrier or
    not."""
    block = fp.serial(fp.dense(64), fp.gelu(), fp.dense(64), fp.gelu(), fp.dense(64))
    x = jnp.ones((512, 64))

    def temporary(layer):
        model = fp.repeat(layer, 4)
        params = jax.eval_shape(model.init, jax.random.key(0), x)

        def gradient(params, x):
            y, residuals = model.forward(params, x)
            return model.backward(params, residuals, y)

        compiled = jax.jit(gradient).lower(params, x).compile(OPTIMISED)
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(fp.remat(block)) < 0.7 * temporary(block)
    params = block.init(jax.random.key(0), x)
    backward = jax.make_jaxpr(fp.remat(block).backward)
    residuals = fp.remat(block).forward(params, x)[1]
    assert "optimization_barrier" in str(backward(params, residuals, x))


def test_the_sum_over_parts_is_the_gradient_of_the_whole(x64):
    """Rule 3: sums add up over parts of any size and any weights."""
    objective = fp.objective(
        fp.serial(fp.dense(5), fp.tanh(), fp.dense(3)),
        fp.softmax_cross_entropy(0.1),
        accuracy=fp.accuracy,
    )
    key = jax.random.key(0)
    x = jax.random.normal(key, (10, 4), jnp.float64)
    batch = x, jax.random.randint(key, (10,), 0, 3), jax.random.uniform(key, (10,), jnp.float64)
    params = objective.init(key, batch)
    grad_fn = quickly(fp.backprop(objective))
    parts = [
        grad_fn(params, jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], batch))
        for a, b in ((0, 1), (1, 10))
    ]
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    whole = grad_fn(params, batch)
    chex.assert_trees_all_close(total[:3], whole[:3], rtol=1e-12)
    chex.assert_trees_all_close(total.metrics, whole.metrics, rtol=1e-6)  # float32


def test_manual_and_autodiff_agree_through_a_step(x64):
    objective = fp.objective(fp.serial(fp.dense(5), fp.gelu(), fp.dense(1)), fp.huber())
    x = jax.random.normal(jax.random.key(0), (10, 4), jnp.float64)
    batch = x, x[:, :1] ** 2

    def loss_fn(params, batch):
        return objective.forward(params, batch)[0]

    states = []
    for grad_fn in (
        fp.backprop(objective),
        fp.from_loss(loss_fn),
        fp.backprop(fp.autodiff(objective)),
        fp.backprop(fp.map_layers(fp.autodiff, objective)),
    ):
        train = fp.step(grad_fn, optax.sgd(1e-2, momentum=0.9))
        state = train.init(objective.init(jax.random.key(1), batch), None)
        for _ in range(5):
            state, _ = train.update(state, batch)
        states.append(state.params)
    for other in states[1:]:
        chex.assert_trees_all_close(states[0], other, rtol=1e-10)


# From the ground floor up: a room may import the ground floor and, above it, what it says.
GROUND = {
    *(
        "formula",
        "values",
        "reprs",
        "trees",
        "keys",
        "names",
        "decoding",
        "residuals",
        "layer",
        "maps",
        "located",
        "properties",
        "intended",
    ),
    "jitted",
    "looping",
    "checks",
    "mesh",
    "drawing",
}
IMPORTS = {
    "values": set(),
    "reprs": set(),
    "imported": set(),
    "mesh": set(),
    "trees": {"values", "reprs"},
    "names": {"layer"},  # for the type alone
    "checks": {"trees", "values"},
    "drawing": {"trees", "checks"},
    "keys": {"checks", "drawing"},
    "jitted": {"values", "trees", "checks"},
    "looping": {"checks"},
    "decoding": {"trees", "looping"},
    "formula": {"checks"},
    "residuals": {"layer"},  # for the type alone
    "layer": {"trees", "checks", "keys", "names", "decoding", "formula", "residuals"},
    "maps": {"checks", "layer", "names"},
    "located": {"trees", "names", "decoding", "layer"},
    "properties": {"layer", "names", "maps"},
    "params": GROUND,
    "arguments": GROUND | {"params"},
    "quantities": GROUND | {"objectives", "params", "arguments", "as_function"},
    "functions": GROUND | {"params"},
    "linear_map": {"trees"},
    "cotangents": GROUND,
    "as_function": GROUND | {"linear_map", "cotangents", "params"},
    "combinators": GROUND | {"params"},
    "reversible": GROUND | {"params", "combinators"},
    "direct_feedback": GROUND | {"params"},
    "intended": {"layer"},  # for the type alone
    "layers": GROUND | {"params", "quantities", "functions"},
    "losses": GROUND | {"quantities"},
    "metrics": GROUND | {"losses"},
    "objectives": GROUND | {"arguments", "metrics"},
    "gradients": GROUND | {"params", "arguments", "metrics"},
    "rewrites": GROUND
    | {"params", "arguments", "quantities", "functions", "layers", "combinators"},
    "models": GROUND
    | {"params", "layers", "combinators", "losses", "objectives", "gradients", "rewrites"},
    "transforms": GROUND
    | {"params", "arguments", "metrics", "quantities", "rewrites", "gradients"},
    "steps": GROUND | {"params", "arguments", "rewrites", "gradients", "transforms"},
    "inspect": GROUND | {"params"},
    "nonfinite": GROUND
    | {"arguments", "params", "inspect", "gradients", "rewrites", "transforms", "steps", "verify"},
    "deriving": GROUND | {"arguments", "params", "gradients"},
    "flow": GROUND
    | {"arguments", "inspect", "params", "gradients", "nonfinite", "steps", "transforms"},
    "memory": GROUND
    | {"params", "arguments", "gradients", "inspect", "rewrites", "steps", "verify"},
    "explaining": GROUND
    | {"arguments", "params", "inspect", "gradients", "steps", "nonfinite", "verify"},
    "sharding": GROUND
    | {"params", "arguments", "inspect", "gradients", "rewrites", "transforms", "steps"},
    "pipelining": GROUND
    | {"params", "arguments", "gradients", "linear_map", "rewrites", "transforms"},
    "verify": GROUND | {"params", "functions", "inspect", "version", "imported"},
}
# Imported where used: a table in a terminal; what a pair is of.
EXTRAS = {"report.py": {"rich"}, "from_pair.py": {"torch"}, "picture.py": {"matplotlib"}}
CORE_MAY_IMPORT = {"jax", "optax", "chex", "numpy", "funprop", "__future__", "jaxtyping"}


def _imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_run_one_way_and_the_core_needs_only_the_core():
    """The arrow of the architecture: no circles, nothing that trains imports verify."""
    for part, may in IMPORTS.items():
        path = ROOT / "funprop" / part
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            for module in _imports(file):
                top, _, inner = module.partition(".")
                if inner == "typing":  # the words of annotations, which import nothing of ours
                    continue
                if top == "funprop":
                    names = {inner.split(".")[0]} if inner else {"trees", "layer"}
                    assert names <= may | {part}, f"{file.name} imports {module}"
                else:
                    extra = EXTRAS.get(file.name, set())
                    assert top in CORE_MAY_IMPORT | sys.stdlib_module_names | extra, (file, module)


def test_importing_funprop_imports_no_extra():
    code = (
        "import sys, funprop\n"
        "extras = {'rich', 'matplotlib', 'sklearn', 'tyro', 'flax', 'equinox', 'jaxtyping'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_has_a_docstring_with_an_example():
    data = {"Frozen", "Gradient", "Step", "TrainState", "FusedState", "Tapped", "Fit", "Statistic"}
    data |= {*("Averaged", "Guarded", "Population", "PopulationTable", "LowRank", "Scaled")}
    data |= {*("ParamTable", "ShardingTable", "Watch", "Within", "Checkpoint", "Derivation")}
    data |= {*("Explanation", "Diagonal", "Factors", "NonfiniteReport", "KfacState", "Posterior")}
    data |= {"Restored", "Feedback"}
    data |= {name for name in dir(fp) if name.endswith("Params")} | {"BatchSums"}
    for name in dir(fp):
        thing = getattr(fp, name)
        if name.startswith("_") or not callable(thing) or isinstance(thing, type(re)):
            continue
        assert thing.__doc__, name
        assert ">>>" in thing.__doc__ or name in data, name


def test_no_file_is_long_and_no_two_import_each_other():
    files = list((ROOT / "funprop").rglob("*.py"))
    lengths = sorted(len(file.read_text().splitlines()) for file in files)
    lengths.remove(
        len((ROOT / "funprop" / "__init__.py").read_text().splitlines())
    )  # a list of names
    assert lengths[-1] <= 300 and lengths[len(lengths) // 2] <= 120
    assert len(list((ROOT / "funprop" / "verify").glob("*.py"))) <= 10
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    imports = {
        name: {found for found in _imports_of_ours(file) if found in names and found != name}
        for name, file in names.items()
    }
    while imports:  # take away what imports nothing that is left; a circle stays
        free = {name for name, found in imports.items() if not found & imports.keys()}
        assert free, f"a circle among {sorted(imports)}"
        imports = {name: found for name, found in imports.items() if name not in free}


def _imports_of_ours(file):
    """Modules that a file imports when it runs, a package's own files too."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
