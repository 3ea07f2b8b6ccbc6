"""The pytest plugin: a `gradients` fixture, seeds that a test's name gives, and a summary line.

Nothing of JAX, nor of funprop, is imported until a test asks for the fixture: a `conftest.py` must
be able to set JAX's environment first.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

COUNTS = pytest.StashKey[Counter[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--gradients-seed N`: another seed than the test's name gives."""
    group = parser.getgroup("funprop")
    group.addoption(
        "--gradients-seed",
        type=int,
        default=None,
        metavar="N",
        help="seed of the gradients fixture, for every test (default: from the test's name)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.stash[COUNTS] = Counter()


@pytest.fixture
def gradients(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`funprop.testing.assert_gradients`, seeded by the test's name, so that it is reproducible.

    A test calls it: `gradients(layer, params, x)`, `gradients(function, *args)`.
    """
    from funprop.testing import assert_gradients
    from funprop.verify import Report

    counts = request.config.stash[COUNTS]
    given = request.config.getoption("gradients_seed")
    seed = zlib.crc32(request.node.nodeid.encode()) if given is None else given

    def check(target: Any, *args: Any, **options: Any) -> Report:
        counts["targets"] += 1
        options.setdefault("seed", seed)
        try:
            report = assert_gradients(target, *args, **options)
        except AssertionError as error:
            counts["wrong"] += 1
            request.node.user_properties.append(("gradients_wrong", str(error).partition("\n")[0]))
            error.add_note(f"seed {options['seed']}: --gradients-seed {options['seed']} repeats it")
            raise
        counts["gradients"] += len(report.checks)
        request.node.user_properties.append(("gradients_right", len(report.checks)))
        return report

    return check


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under xdist, hand the counts to the process that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["funprop"] = dict(session.config.stash[COUNTS])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Under xdist, take the counts of a worker."""
    node.config.stash[COUNTS].update(getattr(node, "workeroutput", {}).get("funprop", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line, where gradients were verified."""
    counts = terminalreporter.config.stash[COUNTS]
    if counts["targets"]:
        right = counts["targets"] - counts["wrong"]
        line = f"funprop: {right} of {counts['targets']} backward passes right"
        terminalreporter.write_line(f"{line}, {counts['gradients']} gradients verified")
