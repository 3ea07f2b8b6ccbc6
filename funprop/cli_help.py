"""What `funprop --help` and `funprop COMMAND --help` print: groups, a line each, examples last."""

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

GROUPS: dict[str, tuple[str, ...]] = {
    "Train": ("train", "finetune", "predict", "prepare"),
    "Look at a run": ("runs", "show", "explain", "debug"),
    "Check a gradient": ("verify",),
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "The data": ("target", "task", "class_weights", "time", "group", "held_out", "image_size"),
    "The network and its training": (
        *("model", "low_rank", "where", "optimizer", "learning_rate", "epochs", "batch_size"),
        *("length", "seed", "backward", "nonfinite", "prompt"),
    ),
    "The run folder": ("out", "restart", "override", "watch"),
    "Many runs as one program": ("sweep", "seeds", "keep"),
    "Many devices and processes": ("processes", "distributed", "ordered"),
}
EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "funprop train digits",
        "funprop train people.csv --target tier",
        "funprop predict runs/people-20261127-101500 new.csv --out said.csv",
        "funprop verify mypackage.kernels:attention",
    ),
    "train": (
        "funprop train digits --model cnn --epochs 20",
        "funprop train people.csv --target tier --time joined",
        "funprop train photographs/ --image-size 64",
        "funprop train my_module:task --out runs/first",
        "funprop train digits --sweep learning-rate=1e-4..1e-1:16 --seeds 4",
    ),
    "finetune": ("funprop finetune gpt2/ letters.txt --low-rank 16",),
    "predict": (
        "funprop predict runs/people-20261127-101500 new.csv --out said.csv",
        "funprop predict runs/photographs-20261127-101500 new/ --out said.csv",
    ),
    "prepare": (
        "funprop prepare books/*.txt --out books.bin --held-out 0.05",
        "funprop prepare books/*.txt --out books.bin --tokenizer gpt2/tokenizer.json",
    ),
    "runs": ("funprop runs", "funprop runs /data/runs"),
    "show": ("funprop show runs/digits-20261127-101500",),
    "explain": (
        "funprop explain iris",
        "funprop explain runs/digits-20261127-101500 --update 100 --out update.html",
    ),
    "debug": ("funprop debug runs/digits-20261127-101500",),
    "verify": (
        "funprop verify mypackage.kernels:attention",
        "funprop verify mypackage.model:loss --rules --json",
    ),
}
SHELLS = ("bash", "zsh", "fish")
WORDS: dict[type, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
WORDS_OF = {"target": "COLUMN ...", "time": "COLUMN", "group": "COLUMN", "where": "PATTERN"}
WORDS_OF |= {"sweep": "NAME=VALUES ...", "model": "NAME", "end_of_text": "TOKEN"}


def helped(words: list[str], commands: dict[str, Callable[..., int]]) -> str | None:
    """The help that the words of a command line ask for, if they do."""
    if words and not {"-h", "--help"} & set(words):
        return None
    width = min(shutil.get_terminal_size().columns, 110)
    if words and words[0] in commands:
        return _of_command(words[0], commands[words[0]], width)
    return _of_all(commands, width)


def _of_all(commands: dict[str, Callable[..., int]], width: int) -> str:
    out = ["Train a network by a hand-written backward pass, and check that it is right.", ""]
    out += [f"{_bold('usage:')} funprop COMMAND ...", ""]
    for title, names in GROUPS.items():
        rows = [(name, _summary(commands[name])) for name in names]
        out += [_bold(title), *_columns(rows, width, 14), ""]
    rows = [
        ("COMMAND --help", "what it takes, with examples"),
        ("COMMAND --debug", "an error shows where in the code it was"),
        ("--version", "the versions of funprop and JAX"),
        ("--print-completion SHELL", f"completion, as {', '.join(SHELLS)} read it"),
    ]
    return "\n".join([*out, _bold("Options"), *_columns(rows, width, 28), "", *_examples("")])


def _of_command(name: str, command: Callable[..., int], width: int) -> str:
    text, told = _read(command)
    takes = inspect.signature(command, eval_str=True).parameters
    given = {key: item for key, item in takes.items() if _positional(item)}
    options = {key: item for key, item in takes.items() if key not in given}
    needed = [key for key, item in options.items() if item.default is item.empty]
    usage = ["funprop", name, *(_word(key, item) for key, item in given.items())]
    usage += [f"{_flag(key)} {_word(key, options[key])}" for key in needed]
    usage += ["[options]"] * (len(options) > len(needed))
    out = [f"{_bold('usage:')} {' '.join(usage)}", ""]
    out += [line for part in text.split("\n\n") for line in (*textwrap.wrap(part, width), "")]
    rows = [(_word(key, item), told[key]) for key, item in given.items()]
    out += [*_columns(rows, width, 28), ""]
    groups = {title: [key for key in keys if key in options] for title, keys in OPTIONS.items()}
    if len(options) <= 6:  # one list
        groups = {}
    grouped = {key for keys in groups.values() for key in keys}
    groups["Other options" if grouped else "Options"] = [
        key for key in options if key not in grouped
    ]
    for title, keys in groups.items():
        rows = [(_written(key, options[key]), _told(told[key], options[key])) for key in keys]
        if rows:
            out += [_bold(title), *_columns(rows, width, 28), ""]
    return "\n".join([*out, *_examples(name)])


def _summary(command: Callable[..., int]) -> str:
    """The first sentence, without its stop."""
    return _read(command)[0].split("\n\n")[0].removesuffix(".")


def _read(command: Callable[..., int]) -> tuple[str, dict[str, str]]:
    """A docstring's text, and what its `Args:` say of each."""
    text, _, args = inspect.cleandoc(command.__doc__ or "").partition("\nArgs:\n")
    told = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", args, re.M)
    return text.strip(), {name: " ".join(said.split()) for name, said in told}


def _positional(item: inspect.Parameter) -> bool:
    return "Positional" in str(item.annotation)


def _type(item: inspect.Parameter) -> Any:
    """The annotation, without what it says to tyro, and without None."""
    found = item.annotation
    while get_origin(found) is Annotated:
        found = get_args(found)[0]
    if get_origin(found) in (Union, UnionType):
        (found,) = (part for part in get_args(found) if part is not type(None))
    return found


def _word(name: str, item: inspect.Parameter) -> str:
    """What stands for a value."""
    for said in getattr(item.annotation, "__metadata__", ()):
        if getattr(said, "metavar", None):
            return said.metavar
    found = _type(item)
    if get_origin(found) is Literal:
        return "{" + ",".join(get_args(found)) + "}"
    if _positional(item):
        return name.upper()
    return WORDS_OF.get(name) or WORDS.get(found, "VALUE")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _written(name: str, item: inspect.Parameter) -> str:
    return _flag(name) if _type(item) is bool else f"{_flag(name)} {_word(name, item)}"


def _told(said: str, item: inspect.Parameter) -> str:
    default = item.default
    if default is item.empty or default is None or default == () or isinstance(default, bool):
        return said
    return f"{said.removesuffix('.')} [{default}]"


def _columns(rows: list[tuple[str, str]], width: int, indent: int) -> list[str]:
    """Two columns; what is too long for the first has a line of its own."""
    out = []
    for left, right in rows:
        lines = textwrap.wrap(right.removesuffix("."), width - indent, break_on_hyphens=False)
        fits = len(left) + 4 <= indent
        out += [f"  {left:{indent - 2}}{lines.pop(0)}" if fits else f"  {left}"]
        out += [" " * indent + line for line in lines]
    return out


def _examples(name: str) -> list[str]:
    return [_bold("Examples"), *(f"  {line}" for line in EXAMPLES[name])]


def _bold(text: str) -> str:
    """For a terminal; plain elsewhere."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text
