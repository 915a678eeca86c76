"""The commands on entries: ``leaderboard``, ``report``, ``compare`` and ``verify``."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.options import Device, Leaderboards, Weights

commands = typer.Typer()


@commands.command()
def leaderboard(leaderboards: Leaderboards = Path("leaderboards")) -> None:
    """Rebuild every table from the entries alone."""
    from benchmark.leaderboard.tables import rebuild

    for path in rebuild(leaderboards):
        typer.echo(path)


@commands.command()
def report(
    output: Annotated[Path, typer.Option(help="The page, one HTML file that needs no network.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Also write each figure as PNG and SVG into this folder.")
    ] = None,
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Show the results as a page: tables, trade-offs, curves, energies, samples, and how each number was made."""
    from benchmark.leaderboard.paper_figures import write_figures
    from benchmark.leaderboard.report import write_report

    typer.echo(write_report(leaderboards, output))
    for path in write_figures(leaderboards, figures) if figures is not None else ():
        typer.echo(path)


@commands.command()
def compare(
    a: Annotated[str, typer.Argument(help="An entry's file, or a row of a table: a recipe.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    dataset: Annotated[str | None, typer.Option(help="The table's data set, where there are several.")] = None,
    threat: Annotated[str | None, typer.Option(help='The table\'s threat model, such as "Linf:8/255".')] = None,
    protocol: Annotated[
        str | None, typer.Option(help="The table's protocol: its id, or the beginning of its hash.")
    ] = None,
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Say whether one row is ahead of another, by a paired test on the same images."""
    from benchmark.leaderboard import compare as comparisons

    found = comparisons.compare(a, b, leaderboards, dataset=dataset, threat=threat, protocol=protocol)
    for line in comparisons.lines(found):
        typer.echo(line)


@commands.command()
def verify(
    entries: Annotated[list[Path], typer.Argument(help="Entries, or folders of them.")],
    checkpoint: Weights = None,
    device: Device = "auto",
) -> None:
    """Recompute entries from their evidence with one forward pass; status 1 where one does not hold."""
    from benchmark.evaluation import verify as verifying
    from methods.training.devices import select_device

    place = select_device(device)
    found = [done for path in entries for done in verifying.verify_all(path, checkpoint=checkpoint, device=place)]
    for verification in found:
        typer.echo(f"{'verified' if verification.passed else 'FAILED'}: {verification.entry}")
        for line in verification.lines:
            if len(found) == 1 or line.passed is False:
                typer.echo(f"  {line}")
    good = sum(verification.passed for verification in found)
    typer.echo(f"{good} of {len(found)} entries verified. {verifying.MEANING}")
    if good < len(found):
        raise typer.Exit(1)
