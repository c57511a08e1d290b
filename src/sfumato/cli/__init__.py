"""The command line: `sfumato COMMAND`. One module for each command; each parses, calls the library, writes, reports.

A command's module is imported when that command is used, and the library when the command runs: help and completion load no torch.
"""

import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sfumato.cli.imports import import_file
from sfumato.errors import CheckpointError

COMMANDS = (
    "train",
    "doctor",
    "train-classifier",
    "sample",
    "upscale",
    "evaluate",
    "compare",
    "sweep",
    "restore",
    "plot",
    "ema",
    "recipes",
    "zoo",
    "tune",
    "verify",
    "bench",
)


class Commands(TyperGroup):
    """The COMMANDS, each the function of its name in the module of its name."""

    def __init__(self, **options: Any) -> None:
        """Lists names only."""
        super().__init__(**{**options, "commands": {name: TyperCommand(name) for name in COMMANDS}})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports a command's module; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        single = typer.Typer(rich_markup_mode=None, add_completion=False)
        single.command()(getattr(import_module(f"{__name__}.{name}"), name))
        return typer.main.get_command(single)


app = typer.Typer(
    name="sfumato",
    cls=Commands,
    help="Train, sample, guide, measure and explain diffusion models on your own data.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    imports: Annotated[
        list[Path] | None, typer.Option("--import", metavar="FILE.py", help="Run a Python file first that registers your own kinds.")
    ] = None,
) -> None:
    """Train, sample, guide, measure and explain diffusion models on your own data."""
    for file in imports or ():
        import_file(file)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; an error is one sentence on standard error and an exit code: 2 for bad use, 1 for failure, 130 for Ctrl-C."""
    arguments, code = sys.argv[1:] if arguments is None else arguments, 0

    def report_error(sentence: str, code: int) -> int:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"sfumato: {sentence}", file=sys.stderr)
        return code

    try:
        code = app(arguments, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = report_error("stopped.", 130)
    except typer.TyperException as error:
        code = report_error(error.format_message(), error.exit_code)
    except ValueError as error:
        code = report_error(str(error), 2)
    except OSError as error:
        code = report_error(f"{error.filename}: {(error.strerror or str(error)).lower()}." if error.filename else str(error), 1)
    except (CheckpointError, FloatingPointError, MemoryError) as error:
        code = report_error(str(error) or "not enough memory; use a smaller batch.", 1)
    except Exception as error:  # unforeseen errors are reported in one sentence too
        code = report_error(
            f"failed with {type(error).__name__}: {' '.join(str(error).split())}; run it again with --debug for the traceback.", 1
        )
    sys.exit(code or 0)
