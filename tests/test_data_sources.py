"""Data that is not in memory: the same batches, each a function of seed and index, read ahead by a
thread that ends, and told by record where wrong."""

import dataclasses
import threading
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.train.data.order import shuffled
from funprop.train.data.prefetch import ahead
from funprop.train.data.record_batches import RecordBatches
from funprop.train.data.records import TRIED
from tests.test_fit import DATA, KEY, N, X, Y, objective, stepped

ORDER = shuffled(np.arange(N), N, 3, 0)


class Grain:
    """What `fit` sees of a `grain.MapDataset`: records by number, those filtered out are `None`."""

    def __init__(self, *leaves, odd=()):
        self.leaves, self.odd = leaves, dict(odd)

    def __len__(self):
        return len(self.leaves[0])

    def __getitem__(self, i):
        if i in self.odd:
            return self.odd[i]() if callable(self.odd[i]) else self.odd[i]
        return tuple(leaf[i] for leaf in self.leaves)


class HuggingFace(Grain):
    """And of a `datasets.Dataset`: dicts of lists and numbers of Python's, many at once."""

    def __getitem__(self, i):
        assert type(i) is int
        x, y = super().__getitem__(i)
        return {"x": x.tolist(), "y": int(y)}

    def __getitems__(self, keys):
        assert type(keys) is list
        return [self[i] for i in keys]


def trained(step, params, data, *, key=None, **options):
    options = {"epochs": 1, "batch_size": 4, "progress": None, "seed": 3} | options
    return fp.fit(step, step.init(params, key), data, **options)


def by_hand(step, params, parts, key=None):
    state, update = step.init(params, key), jax.jit(step.update)
    for part in parts:
        state, _ = update(state, part)
    return state


def in_order(epochs=1, last=0):
    """The batches of `fit(..., seed=3, batch_size=4)`, all but the last so many of each epoch."""
    for epoch in range(epochs):
        order = shuffled(np.arange(N), N, 3, epoch)
        for i in range(0, N - last, 4):
            yield jnp.asarray(X[order[i : i + 4]]), jnp.asarray(Y[order[i : i + 4]])


# ------------------------------------------------------------------------------------- the order


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**80), epoch=st.integers(0, 2**40))
def test_every_record_stands_at_one_place(n, seed, epoch):
    order = shuffled(np.arange(n), n, seed, epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    some = np.arange(n).reshape(-1, 1)[::2]
    np.testing.assert_array_equal(shuffled(some, n, seed, epoch), order.reshape(-1, 1)[::2])


def test_orders_are_drawn_evenly():
    """All 24 of four records, and every record as often at every place of seven."""
    orders = [tuple(shuffled(np.arange(4), 4, seed, 0)) for seed in range(1200)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24 and ((counts - 50) ** 2 / 50).sum() < 60  # 23 degrees of freedom
    at = np.stack([shuffled(np.arange(7), 7, 5, epoch) for epoch in range(700)])
    counts = np.stack([(at == i).sum(0) for i in range(7)])
    assert ((counts - 100) ** 2 / 100).sum() < 80  # 36 degrees of freedom


@pytest.mark.parametrize("n", [1, 2, 10**9, 2**63 - 1])
def test_an_order_of_any_length_costs_nothing(n):
    places = np.unique(np.array([0, n // 2, n - 1]))
    found = shuffled(places, n, 0, 0)
    assert len(np.unique(found)) == len(places) and (found >= 0).all() and (found < n).all()


# ----------------------------------------------------------------------------- the same as arrays


@pytest.mark.parametrize("kind", [Grain, lambda *leaves: list(zip(*leaves, strict=True))])
def test_a_source_is_as_the_same_batches_one_by_one(kind):
    step, params = stepped(objective(fp.dropout(0.5)), optax.sgd(0.1, momentum=0.9))
    got = trained(step, params, kind(*DATA), key=KEY, epochs=2)
    chex.assert_trees_all_equal(got.state, by_hand(step, params, in_order(2), KEY))
    dropped = trained(step, params, kind(*DATA), key=KEY, last="drop")
    chex.assert_trees_all_equal(dropped.state, by_hand(step, params, in_order(last=1), KEY))


def test_records_are_any_trees():
    def loss_fn(w, batch):
        assert batch["x"].dtype == jnp.float32 and batch["y"].dtype == jnp.int32
        return ((batch["x"] @ w - batch["y"].astype(w.dtype)) ** 2).sum(), len(batch["y"])

    step = fp.step(fp.from_loss(loss_fn), optax.sgd(0.1))
    got = trained(step, jnp.ones(3), HuggingFace(X.astype(np.float64), Y))
    parts = ({"x": x, "y": y} for x, y in in_order())
    chex.assert_trees_all_equal(got.state, by_hand(step, jnp.ones(3), parts))


def test_the_thread_has_the_widths_of_who_calls(x64):
    seen = set()

    def loss_fn(w, batch):
        seen.update(leaf.dtype.name for leaf in batch)
        return ((batch[0] @ w) ** 2).sum(), len(batch[1])

    step = fp.step(fp.from_loss(loss_fn), optax.sgd(0.1))
    trained(step, jnp.ones(3, jnp.float64), Grain(X.astype(np.float64), Y.astype(np.int64)))
    assert seen == {"float64", "int64"}


class OneBuffer(Grain):
    """Every record in the same memory, as readers have it that read into a buffer."""

    def __init__(self, *leaves):
        super().__init__(*leaves)
        self.buffer = tuple(np.empty_like(leaf[0]) for leaf in leaves)

    def __getitem__(self, i):
        for buffer, leaf in zip(self.buffer, super().__getitem__(i), strict=True):
            buffer[...] = leaf
        return self.buffer


@pytest.mark.parametrize("way", [lambda s: s, fp.skip_unreadable])
def test_records_and_batches_may_lie_in_one_buffer(way):
    step, params = stepped(objective())
    sources = Grain(X, Y), way(OneBuffer(X, Y))
    same = [trained(step, params, source, epochs=2).state for source in sources]
    chex.assert_trees_all_equal(*same)
    buffer = np.empty_like(X[:4]), np.empty_like(Y[:4])

    def reused(seed, index):
        for array, whole in zip(buffer, (X, Y), strict=True):
            array[...] = np.roll(whole, index, 0)[:4]
        return buffer

    def fresh(seed, index):
        return np.roll(X, index, 0)[:4], np.roll(Y, index, 0)[:4]

    sizes = {"batch_size": None, "updates": 20}
    same = [trained(step, params, made, **sizes).state for made in (fresh, reused)]
    chex.assert_trees_all_equal(*same)


def test_padding_is_exact_and_refused_as_of_arrays():
    source = Grain(*DATA)
    step, params = stepped(objective())
    short, padded = (trained(step, params, source, last=last) for last in ("short", "pad"))
    assert padded.history[0]["loss"] == pytest.approx(short.history[0]["loss"], rel=1e-6)
    chex.assert_trees_all_close(short.state.params, padded.state.params, rtol=1e-5, atol=1e-7)
    mixing, params = stepped(objective(fp.batch_norm()))
    with pytest.raises(ValueError, match="as batch_norm mixes the examples"):
        trained(mixing, params, source, key=KEY, last="pad")
    own = fp.step(fp.from_loss(lambda w, b: ((b["x"] @ w).sum(), 1)), optax.sgd(0.0))
    with pytest.raises(ValueError, match=r"needs records \(inputs, targets\), got dict"):
        trained(own, jnp.ones(3), HuggingFace(*DATA), last="pad")


def test_a_function_makes_the_batch_of_every_update():
    asked = []

    def batch(seed, index):
        asked.append((seed, index))
        rows = np.random.default_rng([seed, index]).integers(0, N, 5)
        return X[rows], Y[rows]

    step, params = stepped(objective())
    options = {"batch_size": None, "updates": 4}
    whole = trained(step, params, batch, epochs=3, **options)
    assert set(asked) == {(3, i) for i in range(12)} and len(whole.history) == 3
    chex.assert_trees_all_equal(
        whole.state, by_hand(step, params, (batch(3, i) for i in range(12)))
    )
    part = trained(step, params, batch, epochs=1, **options)
    rest = fp.fit(
        step, part.state, batch, epochs=2, first_epoch=1, seed=3, updates=4, progress=None
    )
    chex.assert_trees_all_equal(rest.state, whole.state)


@pytest.mark.parametrize("updates", [1, 1000])  # where none is due, what was reached is saved
def test_a_run_goes_on_in_the_middle_of_an_epoch(updates, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "funprop.train.data.streamed.BLOCK_BYTES", 2 * 4 * 4 * 4
    )  # two batches a block
    step, params = stepped(objective(), optax.sgd(0.1, momentum=0.9))
    whole = trained(step, params, Grain(*DATA), epochs=3)

    class Failing(Grain):
        left = 5 + N + 16  # its first batch is read to see it

        def __getitem__(self, i):
            self.left -= 1
            if self.left < 0:
                raise OSError("unplugged")
            return super().__getitem__(i)

    kept = {"epochs": 3, "checkpoints": fp.Checkpoints(tmp_path, updates=updates)}
    with pytest.raises(ValueError, match=r"^data: record \d+ cannot be read: OSError: unplugged$"):
        trained(step, params, Failing(*DATA), **kept)
    reached = fp.Checkpoints(tmp_path).restore(step.init(params, None))
    assert reached.notes["epoch"] == 1 and reached.notes["done"] == 3  # all that were read
    again = trained(step, params, Grain(*DATA), **kept)
    chex.assert_trees_all_equal(again.state, whole.state)


# ----------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (lambda: 1 / 0, "data: record {} cannot be read: ZeroDivisionError: division by zero"),
        (None, "data: record {} cannot be read: it is None"),
        ((X[0],), "data: record {} must be like the first, but has no targets"),
        (
            (X[0, :2], Y[0]),
            "data: record {}: inputs must be float32[3] as in the first, got float32[2]",
        ),
        (
            (X[0] > 0, Y[0]),
            "data: record {}: inputs must be float32[3] as in the first, got bool[3]",
        ),
        ((X[0] * np.nan, Y[0]), "data: record {}: inputs must be finite, got nan at [0]"),
        ((["a"] * 3, Y[0]), "data: record {}: inputs must be numbers, got dtype <U1"),
        (
            ([[1.0], 2.0], Y[0]),
            "data: record {}: inputs must be an array, got a list of many lengths",
        ),
        (
            (X[0], 2**40),
            "data: record {}: targets must fit in int32, got 1099511627776: set jax_enable_x64, or "
            "use less",
        ),
        ((X[0], 7), "softmax_cross_entropy: labels must be from 0 to 1, got 7"),
    ],
)
def test_a_record_is_named_in_one_sentence(odd, told):
    """Whether it is met before the first update or later, and in whichever thread."""
    step, params = stepped(objective())
    for place in (0, 17):
        i = int(ORDER[place])
        source = Grain(*DATA, odd={i: odd})
        with pytest.raises((ValueError, TypeError)) as raised:
            trained(step, params, source)
        wanted = told.format(i)
        unlike = "first" in told
        assert wanted in str(raised.value) or (place == 0 and unlike), raised.value
        assert "\n" not in str(raised.value)
    assert threading.active_count() == 1


def test_what_cannot_be_read_is_skipped_where_asked_for():
    source = Grain(*DATA, odd={5: lambda: 1 / 0, 6: None, 20: lambda: {}["a"]})
    step, params = stepped(objective())
    with pytest.warns(UserWarning) as told:
        got = trained(step, params, fp.skip_unreadable(source), epochs=2)
    assert sorted(str(w.message).split(" cannot")[0] for w in told) == [
        f"data: record {i}" for i in (20, 5, 6)
    ]
    rows = np.arange(N)
    rows[[5, 6, 20]] = 7, 7, 0  # the next that can be read
    same = trained(step, params, Grain(X[rows], Y[rows]), epochs=2)
    chex.assert_trees_all_equal(got.state, same.state)
    nothing = fp.skip_unreadable(Grain(np.zeros(1000), odd=dict.fromkeys(range(1000))))
    with warnings.catch_warnings(record=True) as told, pytest.raises(ValueError) as refused:
        warnings.simplefilter("always")
        nothing[3]
    assert len(told) == 10 and "of more nothing is said" in str(told[-1].message)
    assert str(refused.value) == (
        f"data: record 3 cannot be read: it is None; nor can any of the {TRIED} from there on"
    )


class NoLength(Grain):
    def __len__(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return 21.0


def test_fit_refuses_what_does_not_fit_together():
    step, params = stepped(objective())

    def batch(seed, index):
        return X[:4], Y[:4]

    def lying(seed, index):
        return X[: 4 - index], Y[: 4 - index]

    def broken(seed, index):
        raise OSError(2, "no such file", "a.png")

    made = {"batch_size": None, "updates": 3}
    for data, options, told in [
        (batch, {"batch_size": None}, "updates must be given, how many an epoch has, as data is a"),
        (batch, {"updates": 3}, "batch_size must be left out, as data is a function of batches"),
        (NoLength(*DATA), {}, "data: its length cannot be read: TypeError: 'float' object"),
        (Grain(*DATA), {"updates": 3}, "updates must be left out where data is no function: all"),
        (Grain(*DATA), {"batch_size": None}, "batch_size must be an integer, got None"),
        (Grain(*DATA), {"batch_size": 22}, "batch_size must be from 1 to 21, the number of examp"),
        (Grain(X[:0]), {}, "data must have at least one example, got none"),
        (
            lying,
            made,
            "data: update 1: inputs must be float32[4,3] as in the first, got float32[3,",
        ),
        (broken, made, "data: update 0 cannot be made: FileNotFoundError: [Errno 2] no such file"),
        (lambda s, i: (X[:4], Y[0]), made, "data: update 0 must be a batch, arrays with one axis"),
        (Grain(np.array(["a"] * N), Y), {}, "inputs must be numbers, got "),
    ]:
        with pytest.raises((ValueError, TypeError)) as refused:
            trained(step, params, data, **options)
        assert told in str(refused.value) and "\n" not in str(refused.value), refused.value


# -------------------------------------------------------------------------------------- the thread


@dataclasses.dataclass
class Slow:
    made: int = 0

    def __iter__(self):
        for i in range(100):
            self.made += 1
            yield i


def test_the_thread_is_ahead_by_two_and_ends_with_who_uses_it():
    slow = Slow()
    items = ahead(iter(slow))
    assert threading.active_count() == 1  # not before it is needed
    assert next(items) == 0 and next(items) == 1
    items.close()
    assert slow.made <= 5 and threading.active_count() == 1

    def wrong():
        yield 1
        raise KeyError("a")

    with pytest.raises(KeyError, match="a"):
        list(ahead(wrong()))
    with pytest.raises(ZeroDivisionError):
        for item in ahead(iter(range(10**9))):
            _ = item / 0
    assert threading.active_count() == 1


@pytest.mark.parametrize("way", ["stop", "diverges", "raises"])
def test_a_run_that_ends_early_leaves_no_thread(way):
    def batch(seed, index):
        return X[:4], Y[:4]

    def stop(history):
        if way == "raises":
            raise RuntimeError("enough")
        return "enough"

    rate = 1e38 if way == "diverges" else 0.1
    step, params = stepped(objective(), optax.sgd(rate))
    options = {"batch_size": None, "updates": 7, "epochs": 10**6, "stop": [stop]}
    if way == "diverges":
        options["stop"] = []
    ended = None
    try:
        ended = trained(step, params, batch, **options)
    except RuntimeError:
        assert way == "raises"
    assert threading.active_count() == 1
    assert ended is None or len(ended.history) < 5


def test_blocks_have_one_shape_and_little_memory(monkeypatch):
    """However many updates are left of an epoch, one program serves."""
    monkeypatch.setattr("funprop.train.data.streamed.BLOCK_BYTES", 4 * 3 * 4 * 3)
    from funprop.train.data.streamed import Streamed

    feed = Streamed(RecordBatches(Grain(*DATA), 4, 3, "drop"), None)
    found = list(feed.blocks(0))
    assert [block.updates for block in found] == [1, 2, 2]
    assert {block.data[0].shape for block in found} == {(2, 4, 3)}
    assert [block.updates for block in feed.blocks(0, 3)] == [1, 1]
    np.testing.assert_array_equal(feed.batch(0, 3)[0], found[2].data[0][0])
    np.testing.assert_array_equal(next(feed.blocks(0, 3)).data[0][0], found[2].data[0][0])


@pytest.mark.parametrize("data", [iter([DATA]), (batch for batch in [DATA])])
def test_what_can_be_read_once_is_no_data(data):
    want = r"^data must be a source with __len__ .*, or a function \(seed, index\) -> batch, got "
    with pytest.raises(TypeError, match=want):
        trained(*stepped(objective()), data)
