"""The commands together, and how their ends become an exit status."""

import sys
from typing import NoReturn, cast

import typer

from benchmark.cli import evaluating, exporting, listing, running, showing, studying
from benchmark.engines import WorkFailed
from methods.errors import InputError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Trilemma: clean accuracy, adversarial robustness and generation, reproduced.",
    no_args_is_help=False,
)
for group in (listing, running, evaluating, showing, studying):
    app.add_typer(group.commands)
app.add_typer(exporting.exports, name="export")

# The base of typer's own usage errors, which lies in click or in typer's private copy of it, as the version has it.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])

INTERRUPTED = 130
"""The exit status after Ctrl-C, which newer versions of typer return and older ones leave to the caller."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; SystemExit carries the exit status."""
    command = typer.main.get_command(app)
    try:
        status = command.main(arguments, prog_name="python -m benchmark", standalone_mode=False)
    except InputError as error:
        _refuse(str(error))
    except UsageError as error:
        _refuse(error.format_message())
    except WorkFailed as error:
        typer.echo(f"failed: {error}", err=True)
        raise SystemExit(1) from None
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:
        typer.echo("Interrupted; the same command continues.", err=True)
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> NoReturn:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    raise SystemExit(2)
