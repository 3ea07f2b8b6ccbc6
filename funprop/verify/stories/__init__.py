"""Why is a gradient wrong? The likely stories, each tried against the truth.

A story is told only where it fits every element at every sample: with random cotangents and inputs
it hardly does so by chance. The first that fits is told: those that can fit least by chance, and
say most, come first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import numpy as np

from funprop.verify.stories.axes import (
    cleared,
    coupled,
    diagonal,
    halves,
    reduced,
    shifted,
    transposed,
)
from funprop.verify.stories.case import KINDS, LONG, Case, Told
from funprop.verify.stories.cotangents import on_its_way
from funprop.verify.stories.inputs import moved, overwritten, partial_sum, replaced
from funprop.verify.stories.jacobian import (
    cotangent_by_place,
    cotangent_elsewhere,
    not_transposed,
)
from funprop.verify.stories.kinks import at_kink
from funprop.verify.stories.links import links
from funprop.verify.stories.loops import at_rest
from funprop.verify.stories.numbers import (
    factor,
    ignores_cotangent,
    nonlinear,
    not_finite,
    precision,
    swapped,
    zero,
)
from funprop.verify.stories.paths import term, whole_term
from funprop.verify.stories.places import (
    elsewhere,
    factor_by_inputs,
    factor_by_place,
    zero_by_place,
)
from funprop.verify.stories.reductions import reduced_otherwise
from funprop.verify.stories.regions import at_places, by_index, by_place, by_sign, complement
from funprop.verify.stories.resting import with_truth
from funprop.verify.stories.steps import step
from funprop.verify.stories.turns import other_sums, turn_edited
from funprop.verify.stories.witnesses import with_witnesses
from funprop.verify.truth.evaluate import NotWideError

STORIES: tuple[Callable[[Case], Told | None], ...] = (
    not_finite,
    zero,
    at_kink,
    ignores_cotangent,
    nonlinear,
    precision,
    factor,
    swapped,
    transposed,
    cleared,
    shifted,
    halves,
    overwritten,
    complement,
    by_sign,
    whole_term,
    reduced,
    term,
    moved,
    zero_by_place,
    at_places,
    partial_sum,
    step,
    reduced_otherwise,
    diagonal,
    on_its_way,
    coupled,
    not_transposed,
    cotangent_by_place,
    factor_by_place,
    factor_by_inputs,
    elsewhere,
    cotangent_elsewhere,
    links,
    by_place,
    replaced,
    by_index,
)

# Nothing is computed anew for these: for many numbers.
CHEAP = (*STORIES[: STORIES.index(overwritten)], reduced)

# And of these none is measured anew: of a large leaf as it ran.
MEASURED = (at_kink, ignores_cotangent, nonlinear, precision)
AS_IT_RUNS = tuple(s for s in CHEAP if s not in MEASURED)

# These look at every step of the forward pass, or at variants of it.
STEP_BY_STEP = (whole_term, term, step, reduced_otherwise, on_its_way)

# Told of the given inputs alone they would say no more, and they take the longest.
EVERYWHERE = (reduced_otherwise, on_its_way)

CUT = "were looked at for other leaves alone, which are wrong too"


def told(case: Case) -> Told | None:
    """The first story that fits; `None` where none does.

    Where other inputs can be made it must hold at them too. Where they cannot, one that fits at the
    given inputs alone is told after all that fit at those nearby.
    """
    case = with_witnesses(case)
    given = None if case.own else case.where_given()
    for at in (case, given) if given else (case,):
        for story in CHEAP if case.tools.many else STORIES:
            if (at is given and story in EVERYWHERE) or (case.long and story in STEP_BY_STEP):
                continue
            try:
                with np.errstate(all="ignore"):
                    if found := story(at):
                        assert found.kind in KINDS, found.kind
                        return found
            except NotWideError:  # the truth is not known at the points that this story asks for
                continue
    if (case.long or case.tools.only_values) and (found := _of_a_turn(case)):
        return found
    if case.long:
        cut = "are too many to be looked at" if case.steps > LONG else CUT
        return Told("", f"in no way that is known here, and its steps {cut}")
    return None


def told_as_it_runs(here: Case, there: Callable[[], Case], both: Callable[[], Case]) -> Told | None:
    """The first story that fits a large leaf where it was given, and the same at other inputs.

    Args:
      here: the leaf at the given inputs.
      there, both: make it at others, and at all: what does not fit here needs neither.
    """
    for story in AS_IT_RUNS:
        with np.errstate(all="ignore"):
            if found := story(here):
                again = story(there())
                if again and again != found:  # another factor, or it is rounded otherwise
                    found = again = story(both())
                if again:
                    return found
    return None


def _of_a_turn(case: Case) -> Told | None:
    """The first story of a turn of the loop that the forward pass is, if it comes to rest."""
    known = with_truth(case) if case.tools.only_values else case
    rest = at_rest(known) if known else None
    if rest is None:
        return None
    of_steps = [functools.partial(story, rest.case) for story in STEP_BY_STEP]
    for told in (lambda: other_sums(rest), *of_steps, lambda: turn_edited(rest)):
        with np.errstate(all="ignore"):
            if found := told():
                return found._replace(sentence=_named(found.sentence, rest.where))
    return None


def _named(sentence: str, loop: str) -> str:
    """The sentence, with a step that stands nowhere in the user's code called what it is: it
    multiplies the change of one turn."""
    step = re.compile(r"`[^`]+`( at \S+)?")
    return step.sub(lambda m: m[0] if m[1] else f"the turns of {loop}", sentence)
