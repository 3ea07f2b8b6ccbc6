"""What JAX says of a rule that does not fit its function, in fewer words."""

from __future__ import annotations

import re

# The end of what JAX says is what people look for, and it says it after some 200 letters.
SHORT = (
    (
        r"at output(\S+) the bwd rule produced an output of type (\S+) corresponding to an "
        r"input of type (\S+?),? so",
        r"gradient \1 is \2, and its input \3",
    ),
    (
        r"but got bwd output structure PyTreeDef\((.*)\) for primal input structure "
        r"PyTreeDef\((.*)\)",
        r"it gives \1, and the arguments are \2",
    ),
    (
        r"Custom VJP fwd rule .* must produce a pair",
        "the rule's forward pass must give a pair, the output and what backward needs",
    ),
    (
        r"for argument to VJP function: got (\S+), but expected (\S+) because",
        r"the rule's forward pass gives \2, and the function \1",
    ),
    (
        r"Expected (\S+) \(tangent type of \S+\) but got (\S+?)\.?$",
        r"the tangent is \2, and the output \1",
    ),
    (r"No (VJP|JVP) defined for", "it has no rule yet: its def\\1 was not called"),
)


def in_short(said: str) -> str:
    """What an error says, in our words where we have some; else as it is."""
    one_line = " ".join(said.split())
    for pattern, words in SHORT:
        if found := re.search(pattern, one_line):
            return found.expand(words).replace("VJP", "vjp").replace("JVP", "jvp")
    return said
