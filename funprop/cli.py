"""The `funprop` command."""

import sys
from pathlib import Path
from typing import Annotated

import jax

from funprop.cli_help import SHELLS, helped
from funprop.cli_words import gathered
from funprop.starting import INTERRUPTED, started
from funprop.train.output import lasting_output
from funprop.version import __version__


def main() -> None:
    """Parse the command line and run what it names.

    What goes wrong ends with one sentence on standard error and 1; Ctrl-C, where nothing has been
    reached that could be written, with 130. `--debug` shows where in the code it was.
    """
    lasting = lasting_output()
    debugging = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        code = _run()
        sys.stdout.flush()
        if lasting.problem is not None:
            raise lasting.problem
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        exec("")  # else Python ends by the signal, where it was raised in code that was a string
        code = INTERRUPTED
    except Exception as error:
        if debugging:
            raise
        code = f"error: {_told(error)}"
    sys.exit(code)


def _told(error: Exception) -> str:
    """What went wrong, in a sentence; of what was not foreseen, its kind too."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | TypeError | FloatingPointError | ImportError | OSError):
        return str(error)
    said = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {said[:200]} (--debug shows where)"


def _run() -> int:
    """The command's exit code, where it ends well."""
    if sys.argv[1:] == ["--version"]:
        print(f"funprop {__version__}, JAX {jax.__version__}")
        return 0
    try:
        import tyro
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the funprop command needs tyro: pip install 'funprop[train]'"
        ) from None

    from funprop.cli_train import train

    def predict(
        run: tyro.conf.Positional[Path], file: tyro.conf.Positional[Path], out: Path
    ) -> int:
        """Write what the model of a run says of other data.

        Of classes it gives the probability of each.

        Args:
          run: its folder.
          file: a table with the columns that were learnt from; an image, or a folder of them; or,
            of a task of arrays, its inputs in a .npy or .npz file.
          out: the table to write, .csv, .csv.gz, .tsv or .parquet; or .npy, for the model's outputs
            as they are.
        """
        from funprop.train.runs import predict as predicted

        started()
        print(predicted.predict(run, file, out))
        return 0

    def verify(
        object: Annotated[  # noqa: A002  # what the command line calls it
            tyro.conf.Positional[str], tyro.conf.arg(metavar="PACKAGE.MODULE:OBJECT")
        ],
        rules: bool = False,
        seed: int = 0,
        json: bool = False,
    ) -> int:
        """Judge a backward pass: is it right, and if not, where and how?

        OBJECT is a pair `(target, example)`, or a triple with the reference of a hand-written
        gradient: `target` is a layer or a function, `example()` gives its arguments as a tuple.
        Ends with 1 where a gradient is wrong.

        Args:
          object: where to find it, as in mypackage.kernels:attention.
          rules: judge every custom rule that the target reaches, each where it stands.
          seed: of the cotangents and of the inputs that are tried.
          json: print the report as JSON.
        """
        from funprop.verify.command import run

        started()
        return 0 if run(object, rules=rules, seed=seed, as_json=json) else 1

    def debug(run: tyro.conf.Positional[Path], update: int | None = None) -> int:
        """Show the layer where a run ceased to be finite.

        It runs the update once more, layer by layer.

        Args:
          run: its folder.
          update: which, the first being 1; without it, the one that ended the run.
        """
        from funprop.train.runs import debug as debugged

        started()
        print(debugged.debug(run, update))
        return 0

    def explain(
        run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
        update: int | None = None,
        out: Path | None = None,
    ) -> int:
        """Tell an update in its four stages, from the inputs to the weights.

        Args:
          run: its folder; or digits, digits-denoise, iris, breast-cancer or diabetes, for the first
            update on that data.
          update: which, the first being 1; without it, the last.
          out: where to write a page that shows it, NAME.html; it needs no network.
        """
        from funprop.train.runs import explain as explaining

        started()
        told = explaining.explain(run, update)
        print(told)
        if out is not None:
            told.to_html(out)
            print(f"\n{out}: the same as a page")
        return 0

    def runs(folder: tyro.conf.Positional[Path] = Path("runs")) -> int:
        """List the runs in a folder, the newest first.

        Args:
          folder: where they are.
        """
        from funprop.train.runs import show as shown

        started()
        print(shown.runs(folder))
        return 0

    def show(run: tyro.conf.Positional[Path]) -> int:
        """Show settings, state, curves and checkpoints of a run.

        And whether each is whole.

        Args:
          run: its folder.
        """
        from funprop.train.runs import show as shown

        started()
        print(shown.show(run))
        return 0

    def prepare(
        files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILES")],
        out: Path,
        tokenizer: Path | None = None,
        end_of_text: str | None = None,
        held_out: float = 0.0,
    ) -> int:
        """Make one file of tokens of files of text of any size.

        `fp.Tokens` and `funprop train` read it.

        Args:
          files: text, in this order.
          out: the file to write, NAME.bin; what it holds is told in NAME.bin.json.
          tokenizer: a tokenizer.json of Hugging Face's tokenizers; without it, tokens are bytes.
          end_of_text: one of the tokenizer's tokens, put after every file.
          held_out: the share that goes to NAME-held-out.bin: every n-th file, or, of few files, the
            last part of each.
        """
        from funprop.train.data import prepare

        started()
        options = {"tokenizer": tokenizer, "end_of_text": end_of_text, "held_out": held_out}
        print(prepare.prepare(files, out, **options))
        return 0

    from funprop.train.runs.finetune_command import finetune

    commands = {
        "train": train,
        "finetune": finetune,
        "predict": predict,
        "prepare": prepare,
        "runs": runs,
        "show": show,
        "debug": debug,
        "explain": explain,
        "verify": verify,
    }
    words = gathered(sys.argv[1:])
    if (said := helped(words, commands)) is not None:
        print(said)
        return 0 if words else 2
    if words[0] == "--print-completion":
        if words[1:2] not in ([shell] for shell in SHELLS):
            raise ValueError(f"--print-completion must be followed by one of {', '.join(SHELLS)}")
        words = ["--tyro-print-completion", words[1]]
    return tyro.extras.subcommand_cli_from_dict(commands, prog="funprop", args=words)


if __name__ == "__main__":
    main()
