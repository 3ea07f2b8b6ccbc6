"""How the reference reads our docstrings, which are written for the eye in a terminal.

Before napoleon turns their sections (`Args:`, `Raises:`, ...) into lists, this makes of

- single backticks: code, and a link where it is a public name;
- `Shapes: x [n, i]`, and other headings with text beside them: a paragraph of its own;
- an indented formula: a block of code.
"""

from __future__ import annotations

import re
from typing import Any

# Sections that napoleon knows; their text stands below them, indented.
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Example)( \(.*\))?:$")
# Other headings, whose text begins beside them.
BESIDE = re.compile(r"(Backward|Derivative|Index legend|Params|Residuals|Shapes|Source): ")
CODE = re.compile(r"(?<![`:\\])`([^`\n]+)`(?!`)")


def convert(lines: list[str], public: dict[str, str]) -> list[str]:
    """A docstring as reStructuredText; `public` has the full name of each public one."""
    out: list[str] = []
    section = formula = run_on = False
    for line in joined(lines):
        text, indented = line.strip(), line.startswith(" ")
        if not text:
            formula = run_on = False
            out.append("")
            continue
        if not indented:
            heading = SECTION.match(text)
            section, run_on = heading is not None, False
            if heading:
                out += ["", f"{heading[1]}:"]
                if heading[2]:
                    out += [f"    {with_code(heading[2].strip(' ()').capitalize(), public)}:", ""]
                continue
            if beside := BESIDE.match(text):
                run_on = True
                out += ["", f"**{beside[1]}:** {with_code(text[beside.end() :], public)}"]
                continue
        elif run_on:  # of the paragraph that began beside its heading
            out.append(with_code(text, public))
            continue
        elif not section:
            if not formula and not (out and out[-1].endswith("::")):
                out += ["", "::", ""]
            formula = True
            out.append(f"    {line}")
            continue
        if formula:
            formula = False
            out.append("")
        program = text.startswith((">>>", "...")) or (section and not CODE.search(text))
        out.append(line if program else with_code(line, public))
    return out


def joined(lines: list[str]) -> list[str]:
    """Code that is broken over two lines is put on one."""
    out: list[str] = []
    for line in lines:
        if out and out[-1].count("`") % 2 and line.strip():
            out[-1] += " " + line.strip()
        else:
            out.append(line)
    return out


def with_code(text: str, public: dict[str, str]) -> str:
    """Text whose backticks are reStructuredText's, and whose asterisks are asterisks."""

    def code(found: re.Match[str]) -> str:
        name = found[1].removeprefix("fp.").removeprefix("funprop.")
        if name in public:
            return f":py:obj:`{name} <{public[name]}>`"
        return f"``{found[1].strip()}``" + " " * found[1].endswith(" ")

    parts = CODE.split(text)  # text, code, text, ...
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*|\\]|_\b)", r"\\\1", parts[i])
    for i in range(1, len(parts), 2):
        parts[i] = f"`{parts[i]}`"
    for i in range(2, len(parts), 2):
        if parts[i][:1].isalnum():  # the s of several
            parts[i] = "\\ " + parts[i]
    return CODE.sub(code, "".join(parts))


def public_names() -> dict[str, str]:
    """Each public name of funprop, and what the reference calls it."""
    import funprop

    return {name: f"funprop.{name}" for name in funprop.__all__}


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls it."""
    public = public_names()

    def docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: Any) -> None:
        links = {k: v for k, v in public.items() if v != name}  # none to itself
        lines[:] = convert(lines, links)

    def skipped(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> Any:
        alias = (getattr(thing, "__doc__", None) or "").startswith("Alias for field number")
        return True if alias else None  # of a NamedTuple; its docstring has them

    app.connect("autodoc-process-docstring", docstring, priority=400)  # napoleon's is 500
    app.connect("autodoc-skip-member", skipped)
    return {"parallel_read_safe": True}
