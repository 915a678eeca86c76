"""The commands ``export robustbench`` and ``export check``."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.options import Device, Weights

exports = typer.Typer(help="Write results in the form that another project takes.", no_args_is_help=False)


@exports.command("robustbench")
def export_robustbench(
    entry: Annotated[Path, typer.Argument(help="An entry's file.")],
    model_id: Annotated[str, typer.Option(help="Author, year, first word of the title: Wang2023Better_WRN-28-10.")],
    paper: Annotated[str, typer.Option(help="The paper's title.")],
    authors: Annotated[str | None, typer.Option(help='Such as "A. One, B. Two".')] = None,
    url: Annotated[str | None, typer.Option(help="The paper's address.")] = None,
    venue: Annotated[str | None, typer.Option(help='Such as "ICML 2024" or "arXiv, Jun 2024".')] = None,
    reported: Annotated[float | None, typer.Option(help="The paper's own robust accuracy, in percent.")] = None,
    footnote: Annotated[
        str | None, typer.Option(help="A remark on the leaderboard, such as on synthetic data.")
    ] = None,
    checkpoint: Weights = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write; submissions/<model id> by default.")] = None,
    device: Device = "auto",
) -> None:
    """Write what RobustBench needs of a new model, and prove it by RobustBench's own code; status 1 where it fails."""
    from benchmark.robustbench import submission
    from benchmark.robustbench.claim import Paper
    from methods.training.devices import select_device

    about = Paper(paper, authors, url, venue, reported, footnote)
    place = select_device(device)
    kit = submission.export(entry, model_id, about, checkpoint=checkpoint, output=output, device=place)
    for line in kit.lines:
        typer.echo(line)
    if kit.rehearsal:
        typer.echo(kit.rehearsal)
    typer.echo(f"kit: {kit.folder}")
    if not kit.proven:
        typer.echo("failed: RobustBench would not take this kit as it is.", err=True)
        raise typer.Exit(1)
    typer.echo(f"what to do with it: {kit.folder / 'README.md'}")


@exports.command("check")
def export_check(
    records: Annotated[list[Path], typer.Argument(help="Files of RobustBench's model_info/<dataset>/<threat>/.")],
) -> None:
    """Check that records of models have RobustBench's form."""
    from benchmark.robustbench import model_info

    for path in records:
        info = model_info.read(path)
        typer.echo(f"ok: {path}: clean {info.clean_acc} %, AutoAttack {info.autoattack_acc} %")
