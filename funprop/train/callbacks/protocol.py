"""What a callback is, and how `fit` calls many: in their order, an error named by its callback.

Rules (`stop`) read the history and answer, displays (`progress`) show a device call; neither sees
the state. A callback does, and may fail: what has been reached is saved then.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from funprop.checks import described
from funprop.train import processes
from funprop.train.checkpoints import Checkpoints
from funprop.train.stopping import Row


class Start(NamedTuple):
    """What a run begins with.

    Attributes:
      state: the step's; not to be kept, its memory is used up by the first update.
      history: the rows of the run that is gone on with; empty for a new one.
      checkpoints: where the run is kept, or `None`.
    """

    state: Any
    history: Sequence[Row]
    checkpoints: Checkpoints | None


class Callback(Protocol):
    """An object that `fit` calls; of its methods only `on_epoch` need be there.

    One that is a context manager is entered before the run and left after it, however it ends. A
    function `(row, state)` is as good as an object whose `on_epoch` it is.
    """

    def prepare(self, checkpoints: Checkpoints) -> None:
        """Before checkpoints are looked at, where there are any."""

    def begin(self, start: Start) -> None:
        """Before the first device call."""

    def on_epoch(self, row: Row, state: Any) -> None:
        """After every epoch, and wherever else there is a row (`measure_every`).

        Args:
          row: the one of the history, already part of it: numbers that are put into it stay there.
          state: the step's, after the last update that the row tells of. It may be kept.
        """

    def end(self, result: Any) -> Any:
        """When the run has ended well, with its `Fit`; what this gives, if it is not `None`, is
        returned in its place."""


class Rows:
    """A callback that looks at rows alone: it is called by the first of many processes only, and no
    state is copied for it."""

    def begin(self, start: Start) -> None:
        pass

    def on_epoch(self, row: Row, state: Any) -> None:
        raise NotImplementedError


class Callbacks:
    """Many, as one.

    Args:
      given: functions and objects.

    Raises:
      TypeError: one is neither.
    """

    def __init__(self, given: Sequence[Callback | Callable[[Row, Any], Any]]) -> None:
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise TypeError(f"callbacks must be a list, got {described(given)}")
        for one in given:
            if isinstance(one, type) or not callable(getattr(one, "on_epoch", one)):
                raise TypeError(
                    "callbacks must hold functions (row, state), or objects with such an "
                    f"on_epoch, got {described(one)}"
                )
        self.given = [c for c in given if processes.first() or not isinstance(c, Rows)]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within, those that are context managers are entered."""
        with contextlib.ExitStack() as stack:
            for one in self.given:
                if hasattr(one, "on_epoch") and hasattr(type(one), "__enter__"):
                    with _naming(one, "as it was entered"):
                        stack.enter_context(one)  # pyright: ignore[reportArgumentType]
            yield

    def prepare(self, checkpoints: Checkpoints | None) -> None:
        for one in self.given:
            if checkpoints is not None and hasattr(one, "prepare"):
                one.prepare(checkpoints)  # pyright: ignore[reportFunctionMemberAccess]

    def begin(self, start: Start) -> None:
        for one in self.given:
            if hasattr(one, "on_epoch"):
                with _naming(one, "before the first update"):
                    getattr(one, "begin", lambda start: None)(start)

    def on_epoch(self, row: Row, state: Any, copied: Callable[[], Any]) -> None:
        """Call each with a row.

        Args:
          row: of the history.
          state: as it is; its memory may be used up by the next update.
          copied: gives a copy, for those who may keep it.
        """
        own = None
        for one in self.given:
            if not isinstance(one, Rows) and not getattr(one, "copies", False) and own is None:
                own = copied()
            with _naming(one, f"after update {row['update']:,}"):
                call: Any = getattr(one, "on_epoch", one)
                call(row, state if own is None else own)

    def end(self, result: Any) -> Any:
        for one in self.given:
            if hasattr(one, "on_epoch"):
                with _naming(one, "at the end"):
                    result = getattr(one, "end", lambda result: None)(result) or result
        return result


def numbers(row: Row) -> dict[str, float]:
    """The entries of a row that are single numbers; what members of a population have is none."""
    return {name: v for name, v in row.items() if isinstance(v, int | float)}


def client(module: str, extra: str) -> Any:
    """Another package, imported where it is used.

    Raises:
      ModuleNotFoundError: it is missing; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModuleNotFoundError(
            f"{extra} needs {module}: pip install 'funprop[{extra}]'"
        ) from None


@contextmanager
def _naming(one: Any, when: str) -> Iterator[None]:
    """Adds to an error which callback it comes from; its type, which may say much, stays."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the callback {_name(one)}, {when}")
        raise


def _name(one: Any) -> str:
    return getattr(one, "__qualname__", type(one).__name__)
