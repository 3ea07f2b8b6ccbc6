"""A program as Python that needs JAX alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.deriving.drawn import DRAWN
from funprop.deriving.flat import Flat, Operation, Value
from funprop.deriving.indexed import INDEXED, SEVERAL
from funprop.deriving.loops import LOOPS
from funprop.deriving.rules import (
    ELEMENTWISE,
    FUNCTIONS,
    REDUCTIONS,
    SHAPES,
    elementwise,
    expanded,
    reduction,
)
from funprop.deriving.text import Names, Text, array, dtype_name, number

if TYPE_CHECKING:
    from funprop.deriving.trace import Place, Program

INLINE = 60  # an expression of more letters than that gets a line of its own
LARGEST = 4096  # numbers of a constant that may stand in the source


class Source:
    """Lines of Python, written operation by operation.

    Attributes:
      program: what is written.
      names: those in use, of all functions.
      lines: so far.
      texts: how each value is written.
    """

    def __init__(self, program: Program, names: Names) -> None:
        self.program = program
        self.names = names
        self.lines: list[str] = []
        self.texts: dict[Value, Text] = {}
        self.indent = 4
        self.place: Place | None = None

    def write(self, line: str) -> None:
        self.lines.append(" " * self.indent + line if line else "")

    def function(self, jaxpr: Any, takes: list[Value]) -> list[Value]:
        """The lines of one function's body; what it gives."""
        flat = Flat(self.program)
        gives = flat.open(jaxpr, takes)
        flat.count(gives)
        used = {value for operation in flat.operations for value in operation.takes} | set(gives)
        for value, const in flat.consts:
            if value in used:
                self.constant(value, const)
        for operation in flat.operations:
            self.operation(operation)
        return gives

    def constant(self, value: Value, const: Any) -> None:
        if const.size > LARGEST:
            raise ValueError(
                f"derive cannot write out a constant of shape {tuple(const.shape)}: give it as a "
                "part of params or of the input"
            )
        name = self.names.new("constant")
        self.write(f"{name} = {array(const)}")
        self.texts[value] = Text(name)

    # Values

    def text(self, value: Value) -> Text:
        """As it may stand beside values of a full shape: a number as a bare number."""
        if value.number is not None:
            code = number(value.number, value.dtype)
            return Text(code, full=False, number=value.number)
        return self.texts[value]

    def whole(self, value: Value) -> Text:
        """With its own shape and dtype."""
        text = self.text(value)
        if text.number is not None and not value.shape:
            return Text(f"{dtype_name(value.dtype)}({text.code})")
        if text.full:
            return text
        if text.number is not None:
            return Text(f"jnp.full({value.shape}, {text.code}, {dtype_name(value.dtype)})")
        return Text(f"jnp.broadcast_to({text.code}, {value.shape})")

    def code(self, value: Value) -> str:
        return self.whole(value).code

    def beside(self, operation: Operation) -> list[Text]:
        """The operands of what treats all numbers alike, as short as NumPy's broadcasting allows:
        one of them has the full shape, and one, if it is not the same, a dtype."""
        values, (result,) = operation.takes, operation.gives
        texts = [self.text(value) for value in values]
        bare = [text.number is not None for text in texts]
        of_lax = FUNCTIONS.get(operation.name, "").startswith("lax.")
        several = operation.name == "select_n" and len(values) > 3
        if of_lax or several or (operation.name == "div" and np.dtype(result.dtype).kind in "iu"):
            return [self.whole(value) for value in values]  # these do not broadcast nor promote
        last = len(values) - 1
        for i, value in enumerate(values):
            alone = i == last and all(bare[1:] if operation.name == "select_n" else bare)
            if bare[i] and alone:
                texts[i] = texts[i]._replace(code=f"{dtype_name(value.dtype)}({texts[i].code})")
        full = [v.shape for v, text in zip(values, texts, strict=True) if text.full]
        if np.broadcast_shapes(*full) != result.shape:
            i = next(i for i, value in enumerate(values) if value.shape == result.shape)
            texts[i] = self.whole(values[i])
        ranked = zip(values, texts, strict=True)
        if any(v.shape and text.number is None and not text.bare for v, text in ranked):
            texts = [text._replace(code=text.bare or text.code) for text in texts]
        return texts

    # Operations

    def operation(self, operation: Operation) -> None:
        name = operation.name
        if name == "broadcast_in_dim":
            (value,) = operation.gives
            source = operation.takes[0]
            text = self.text(source)
            if not text.full and text.number is None:
                text = self.whole(source)
            again = value.uses > 1 or value.places != {operation.place}
            if again and text.number is None and not text.code.isidentifier():
                self.line([source], text.code, operation)  # else it would be computed twice
                text = self.text(source)
            if text.number is not None:
                self.texts[value] = text._replace(full=False)
            else:
                self.texts[value] = expanded(operation, text)
            return
        if name in LOOPS:
            LOOPS[name](self, operation)
            return
        if name in SEVERAL:
            given = [self.whole(value) for value in operation.takes]
            gives = operation.gives
            if name == "svd" and len(gives) == 3:  # the primitive's order is not the function's
                gives = [gives[1], gives[0], gives[2]]
            try:
                self.line(gives, SEVERAL[name](operation, given).code, operation)
            except LookupError:
                raise unknown(operation) from None
            return
        self.bind(operation, self.expression(operation))

    def expression(self, operation: Operation) -> Text:
        name = operation.name
        if name in ELEMENTWISE:
            return elementwise(operation, self.beside(operation))
        given = [self.whole(value) for value in operation.takes]
        if name in REDUCTIONS:
            return reduction(operation, given)
        rule = SHAPES.get(name) or INDEXED.get(name) or DRAWN.get(name)
        if rule is None:
            raise unknown(operation)
        return rule(operation, given)

    def bind(self, operation: Operation, text: Text) -> None:
        """Give what an operation gives a line of its own, or let it stand where it is used."""
        (value,) = operation.gives
        once = value.uses == 1 and value.places == {operation.place}
        if once and not value.hint and len(text.code) <= INLINE:
            self.texts[value] = text._replace(full=True)
            return
        self.line([value], text.code, operation)

    def line(self, values: list[Value], code: str, operation: Operation | None) -> None:
        if operation is not None:
            self.heading(operation.place)
        targets = ", ".join(self.named(value) for value in values)
        self.write(f"{targets} = {code}")

    def named(self, value: Value) -> str:
        """A name of its own; `_` for what nobody uses."""
        if not value.uses:
            return "_"
        name = self.names.new(value.hint or "t")
        self.texts[value] = Text(name)
        return name

    def heading(self, place: Place | None) -> None:
        if place is None or place == self.place:
            return
        self.place = place
        formula = place.layer.formula
        said = ""
        if formula is not None:
            said = formula.forward if place.stage == "forward" else formula.backward
        self.write("")
        self.write(f"# {place.stage}: {place.path or place.layer.name}")
        for part in said.split("; ") if said else ():
            self.write(f"#   {part}")


def unknown(operation: Operation) -> ValueError:
    """That there is no rule for a primitive, and in which layer it is."""
    where = operation.place or "the layer"
    return ValueError(f"{where}: derive knows no Python for JAX's {operation.name}")
