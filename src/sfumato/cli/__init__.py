"""The command line: `sfumato COMMAND`. One module a command; each parses, calls the library, writes, reports."""

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.bench import bench
from sfumato.cli.doctor import doctor
from sfumato.cli.ema import ema
from sfumato.cli.imports import import_file
from sfumato.cli.plot import plot
from sfumato.cli.recipes import recipes
from sfumato.cli.restore import restore
from sfumato.cli.sample import sample
from sfumato.cli.train import train
from sfumato.cli.train_classifier import train_classifier
from sfumato.cli.tune import tune
from sfumato.cli.verify import verify
from sfumato.cli.zoo import zoo
from sfumato.storage import CheckpointError

app = typer.Typer(
    name="sfumato",
    help="Train, sample, guide, measure and explain diffusion models on your own data.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def options(
    imports: Annotated[
        list[Path] | None, typer.Option("--import", metavar="FILE.py", help="Run a Python file first, which registers kinds of its own.")
    ] = None,
) -> None:
    """Train, sample, guide, measure and explain diffusion models on your own data."""
    for file in imports or ():
        import_file(file)


for command in (train, doctor, train_classifier, sample, restore, plot, ema, recipes, zoo, tune, verify, bench):
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; an error is one sentence on standard error and an exit code: 2 for bad use, 1 for failure, 130 for Ctrl-C."""
    arguments, code = sys.argv[1:] if arguments is None else arguments, 0

    def say(sentence: str, code: int) -> int:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"sfumato: {sentence}", file=sys.stderr)
        return code

    try:
        code = app(arguments, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = say("stopped.", 130)
    except typer.TyperException as error:
        code = say(error.format_message(), error.exit_code)
    except ValueError as error:
        code = say(str(error), 2)
    except OSError as error:
        code = say(f"{error.filename}: {(error.strerror or str(error)).lower()}." if error.filename else str(error), 1)
    except (CheckpointError, FloatingPointError, MemoryError) as error:
        code = say(str(error) or "not enough memory; take a smaller batch.", 1)
    except Exception as error:  # the last resort of a program: what nobody foresaw is a sentence too
        code = say(f"failed with {type(error).__name__}: {' '.join(str(error).split())}; run it again with --debug for the place.", 1)
    sys.exit(code or 0)
