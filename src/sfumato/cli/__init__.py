"""The command line: `sfumato COMMAND`. One module a command; each parses, calls the library, writes, reports."""

import sys

import typer

from sfumato.cli.recipes import recipes
from sfumato.cli.sample import sample
from sfumato.cli.train import train
from sfumato.cli.zoo import zoo
from sfumato.train.checkpoint import CheckpointError

app = typer.Typer(
    name="sfumato",
    help="Train, sample, guide, measure and explain diffusion models on your own data.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (train, sample, recipes, zoo):
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; an error is one sentence on standard error and an exit code: 2 for bad use, 1 for failure, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, code = "--debug" in arguments, 0
    try:
        code = app(arguments, standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except (ValueError, OSError, CheckpointError, FloatingPointError) as error:
        if debug:
            raise
        _fail(_sentence(error), 2 if isinstance(error, ValueError) else 1)
    except KeyboardInterrupt:
        _fail("stopped.", 130)
    sys.exit(code or 0)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.filename}: {error.strerror.lower()}; choose a path that can be read and written." if error.filename else error.strerror
        )
    return str(error)


def _fail(sentence: str, code: int) -> None:
    print(f"sfumato: {sentence}", file=sys.stderr)
    sys.exit(code)
