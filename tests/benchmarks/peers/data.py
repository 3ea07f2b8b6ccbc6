"""The four works' data, and the order of the batches, made once and read by every peer."""

import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

SEEDS = 3


class Work(NamedTuple):
    """One thing to train.

    Attributes:
      says: what it is, for the page.
      unit: what is counted a second, and how many of them an example has.
      target: the held-out measure to be reached, and how much of it.
      timed: epochs of a timed run; the others are taken to last as long.
      at_once: whether timed runs are evaluated too, beside the clock; not where the state is so
        small that `fp.fit` has the next device call under way by then.
    """

    says: str
    unit: tuple[str, int]
    target: tuple[str, float]
    timed: int
    at_once: bool


WORKS = {
    "digits": Work(
        says="digits, MLP 64-128-64-10, batch 64, Adam, 30 epochs",
        unit=("examples", 1),
        target=("accuracy", 0.97),
        timed=30,
        at_once=False,
    ),
    "cnn": Work(
        says="digits at 24 x 24, CNN 32-64, batch 64, Adam, 5 epochs",
        unit=("examples", 1),
        target=("accuracy", 0.97),
        timed=3,
        at_once=False,
    ),
    "gpt": Work(
        says="GPT over bytes, 4 blocks of 128 features, 16 x 128 tokens, AdamW, 6 epochs of 20",
        unit=("tokens", 128),
        target=("loss", 3.0),
        timed=3,
        at_once=True,
    ),
    "large": Work(
        says="MLP 784-2048-2048-10, batch 1,024, Adam, 3 epochs of 16,384",
        unit=("examples", 1),
        target=("loss", 2.0),
        timed=3,
        at_once=True,
    ),
}


def written(work: str, folder: Path, *, tiny: bool = False) -> Path:
    """The file of a work's data, made if it is not there."""
    path = folder / f"{work}{'-tiny' if tiny else ''}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **MAKERS[work](tiny))
    return path


def _orders(examples, batch, epochs):
    """Rows of every batch, `[seeds, epochs, updates, batch]`."""
    rng = np.random.default_rng(1)
    rows = [rng.permutation(examples) for _ in range(SEEDS * epochs)]
    return np.stack(rows).reshape(SEEDS, epochs, -1, batch)


def _digits(tiny):
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = np.random.default_rng(0).permutation(len(found.data))
    x, y = (found.data[rows] / 16).astype(np.float32), found.target[rows].astype(np.int32)
    train = 128 if tiny else 1408  # 22 whole batches: no short one, which some would leave out
    test = slice(-389, None)
    return {"x": x[:train], "y": y[:train], "test_x": x[test], "test_y": y[test]}


def digits(tiny):
    orders = _orders(128, 32, 2) if tiny else _orders(1408, 64, 30)
    return {**_digits(tiny), "order": orders, "widths": [128, 64, 10]}


def cnn(tiny):
    found = _digits(tiny)
    for name in ("x", "test_x"):
        images = found[name].reshape(-1, 8, 8, 1)
        found[name] = images.repeat(3, 1).repeat(3, 2)
    return {**found, "order": _orders(128, 32, 2) if tiny else _orders(1408, 64, 5)}


def gpt(tiny):
    """Windows of the standard library's own sources; each epoch sees the same ones."""
    length, updates, batch, epochs = (16, 3, 2, 2) if tiny else (128, 20, 16, 6)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = np.frombuffer(b"\n".join(path.read_bytes() for path in sources), np.uint8)
    starts = np.random.default_rng(0).integers(0, len(text) - length - 1, updates * batch + 32)
    windows = np.stack([text[start : start + length + 1] for start in starts]).astype(np.int32)
    train, test = windows[:-32], windows[-32:]
    given = {"x": train[:, :-1], "y": train[:, 1:], "test_x": test[:, :-1], "test_y": test[:, 1:]}
    return {**given, "order": _orders(updates * batch, batch, epochs)}


def large(tiny):
    """What a fixed network with random weights says of random inputs."""
    inputs, hidden, examples, batch, epochs = (
        (20, 32, 128, 32, 2) if tiny else (784, 2048, 16_384, 1024, 3)
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples + 2048, inputs)).astype(np.float32)
    teacher = [rng.normal(size=s).astype(np.float32) for s in ((inputs, 16), (16, 10))]
    y = (np.tanh(x @ teacher[0] / inputs**0.5) @ teacher[1]).argmax(-1).astype(np.int32)
    given = {"x": x[:examples], "y": y[:examples], "test_x": x[examples:], "test_y": y[examples:]}
    return {**given, "order": _orders(examples, batch, epochs), "widths": [hidden, hidden, 10]}


MAKERS = {"digits": digits, "cnn": cnn, "gpt": gpt, "large": large}
