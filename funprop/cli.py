"""The `funprop` command."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

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
        code = INTERRUPTED
    except Exception as error:
        if debugging:
            raise
        code = f"error: {_told(error)}"
    sys.exit(code)


def _told(error: Exception) -> str:
    """What went wrong, in a sentence; of what was not foreseen, its kind too."""
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

    def train(
        data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")],
        model: str | None = None,
        optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "adam",
        learning_rate: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        backward: Literal["manual", "autodiff"] = "manual",
        out: Path | None = None,
        processes: int | None = None,
        distributed: bool = False,
        ordered: int | None = None,
        nonfinite: Literal["stop", "skip"] = "stop",
        sweep: tuple[str, ...] = (),
        seeds: int | None = None,
        keep: Literal["best", "all"] = "best",
        restart: bool = False,
        override: bool = False,
    ) -> int:
        """Train a network on real data by a hand-written backward pass.

        Prints the model, checks the gradient of every layer, trains, reports on held-out data and
        writes a run folder.

        Args:
          data: digits, digits-denoise, iris, breast-cancer or diabetes; or stdlib, for a language
            model of the sources of Python's standard library, which shows what it writes as it
            learns; or a file of tokens that funprop prepare wrote, with a part held out.
          model: which network: mlp, cnn or rnn for digits, autoencoder for digits-denoise, llama or
            gpt for stdlib, else mlp; without it, the first of these.
          optimizer: how the gradient becomes an update.
          learning_rate: of the optimizer; without it, what suits the data.
          epochs: how often to go over the data; without it, what suits the data.
          batch_size: examples an update; without it, what suits the data.
          seed: of the params and of the order of the examples.
          backward: by the hand-written backward pass, or by jax.vjp.
          out: the run folder; without it, a new one under runs/. Where it holds a run that was
            stopped, or has fewer epochs than are asked for, that is gone on with.
          processes: split every batch over so many processes, started on this host; 1 for all
            devices of this one.
          distributed: split every batch over the processes that a scheduler started with this same
            command (SLURM, Kubernetes, TPU pods).
          ordered: into how many parts a batch is cut, for bits that do not depend on the number of
            devices and processes.
          nonfinite: whether an update whose loss or gradient is infinite or NaN ends the run, or is
            left out (ten in a row end it). It is never applied.
          sweep: NAME=LOW..HIGH:COUNT or NAME=VALUE,VALUE: many runs as one program, each with a
            learning-rate, weight-decay, momentum, b1 or b2 of its own; of many, every combination.
          seeds: how many seeds a sweep has of each, from seed on.
          keep: the params of the best run of a sweep, or those of all, stacked.
          restart: give the run that the folder holds another name, and begin anew.
          override: go on with the run that the folder holds though settings differ from its own.
        """
        if distributed and processes is not None:
            raise ValueError("a scheduler decides how many processes there are")
        if processes is not None and processes < 1:
            raise ValueError(f"processes must be at least 1, got {processes}")
        given = {
            "learning_rate": learning_rate,
            "epochs": epochs,
            "batch_size": batch_size,
            "seed": seed,
            "backward": backward,
            "out": out,
            "all_devices": distributed or processes is not None,
            "ordered": ordered,
            "nonfinite": nonfinite,
            "restart": restart,
            "override": override,
        }
        from funprop.train.compilation import cache_compilations, compiling
        from funprop.train.processes import joined, launch

        if sweep or seeds is not None:
            given |= {"sweep": sweep, "seeds": 1 if seeds is None else seeds, "keep": keep}
        run = chosen(data, model, optimizer, given)

        def timed() -> None:
            with compiling() as seconds:
                run()
            print(f"Compiling took {sum(seconds):.1f} s of it")

        cache_compilations()
        started()
        if processes is not None and processes > 1:
            launch(processes, run)
        elif distributed:
            joined(timed)
        else:
            timed()
        return 0

    def chosen(
        data: str, model: str | None, optimizer: str, given: dict[str, Any]
    ) -> Callable[[], object]:
        """What trains on the data: to be called here, or in other processes."""
        if "sweep" in given:
            if given.pop("all_devices") or given.pop("ordered") is not None:
                raise ValueError("a sweep is of one process, without processes and ordered")
            from funprop.train.runs import sweep

            return functools.partial(sweep.train, data, model=model, optimizer=optimizer, **given)
        if data == "stdlib" or Path(data).suffix in (".bin", ".npy"):
            if optimizer != "adam":
                raise ValueError(f"text is trained on by adamw, got {optimizer!r}")
            from funprop.train.runs import text

            return functools.partial(text.train, data, model=model or "llama", **given)
        from funprop.train.runs import job

        return functools.partial(job.train, data, model=model, optimizer=optimizer, **given)

    def verify(
        object: Annotated[  # noqa: A002  # what the command line calls it
            tyro.conf.Positional[str], tyro.conf.arg(metavar="PACKAGE.MODULE:OBJECT")
        ],
        rules: bool = False,
        seed: int = 0,
        json: bool = False,
    ) -> int:
        """Judge a backward pass: is it right, where is it wrong, and in what way?

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
        """Run an update of a run once more, layer by layer, and show where it ceases to be finite.

        Args:
          run: its folder.
          update: which, the first being 1; without it, the one that ended the run.
        """
        from funprop.train.runs import debug as debugged

        started()
        print(debugged.debug(run, update))
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
        """Show settings, state, curves and checkpoints of a run, and whether each is whole.

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
        """Make one file of tokens, which fp.Tokens reads, of files of text of any size.

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
        "prepare": prepare,
        "runs": runs,
        "show": show,
        "debug": debug,
        "verify": verify,
    }
    return tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="funprop",
        description="With --debug after any command an error shows where in the code it was.",
    )


if __name__ == "__main__":
    main()
