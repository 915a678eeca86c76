"""The commands on one model: ``evaluate``, ``doctor`` and ``generate``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark.cli.options import (
    ChainStart,
    DatasetName,
    Device,
    Machine,
    Measuring,
    Model,
    ModelDataset,
    ProtocolId,
    Runs,
    Settings,
    ThreatModel,
    WhichCheckpoint,
    finish,
    grouped,
)

commands = typer.Typer()


@commands.command()
@grouped
def evaluate(
    model: Model,
    measuring: Measuring,
    machine: Machine,
    dataset: ModelDataset = None,
    threat: ThreatModel = None,
    protocol: ProtocolId = None,
    overrides: Settings = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only store every N-th shard from the I-th on; a call without it assembles."),
    ] = None,
    runs: Runs = Path("runs"),
    json_file: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write the result here.")] = None,
) -> None:
    """Evaluate a checkpoint, your own model, or one of RobustBench's zoo, under a protocol."""
    from benchmark.evaluation.parts import Part
    from benchmark.runs.evaluate import Question, evaluate_one, image_size

    engine, device = machine.started()
    failures = evaluate_one(
        model.spec(measuring.which, threat),
        Question(dataset, threat, protocol, image_size(overrides or [])),
        measuring.evaluation(engine, device),
        runs=runs,
        json_file=json_file,
        part=None if shard is None else Part.parse(shard),
    )
    finish(failures)


@commands.command()
@grouped
def doctor(
    model: Model,
    dataset: ModelDataset = None,
    threat: Annotated[str, typer.Option(help="Threat model, whose norm finds a model in the zoo.")] = "Linf:8/255",
    eps: Annotated[str | None, typer.Option(help='A stated eps in the model\'s own units, such as "8/255".')] = None,
    input_range: Annotated[
        str | None, typer.Option(help='Where its inputs are said to lie: "-1,1", "cifar10", "imagenet", ...')
    ] = None,
    which: WhichCheckpoint = "best",
    device: Device = "auto",
) -> None:
    """Examine a model before anything is measured on it; status 1 where something is wrong."""
    from benchmark.models.doctor import examine, render
    from benchmark.runs.evaluate import Question
    from methods.training.devices import select_device

    kept: dict[Any, Any] = {}
    place, spec = select_device(device), model.spec(which, threat)
    data = Question(dataset).data(spec.metadata(place, kept))
    spec.check(data.name)
    images = data.load(kept)
    examined = spec.unexamined(images, place, kept)
    diagnosis = examine(examined, images, input_range=input_range, eps=eps, device=place, name=spec.name)
    typer.echo(render(diagnosis))
    if diagnosis.status:
        raise typer.Exit(diagnosis.status)


@commands.command()
def generate(
    checkpoint: Annotated[Path, typer.Option(help="Weights file or run folder whose density is sampled.")],
    output: Annotated[Path, typer.Option(help="The .npz file to write; a picture and a record lie beside it.")],
    dataset: DatasetName = "digits",
    count: Annotated[int, typer.Option(help="Number of images to keep.")] = 1000,
    steps: Annotated[int, typer.Option(help="Number of steps of each chain.")] = 40,
    start: Annotated[ChainStart, typer.Option(help="Distribution in which chains begin.")] = "class_gaussian",
    keep: Annotated[float, typer.Option(help="Share of the generated images to keep: the scorer's surest.")] = 1.0,
    scorer: Annotated[Path | None, typer.Option(help="Checkpoint that scores them, say a standard one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the chains.")] = 0,
    device: Device = "auto",
) -> None:
    """Generate images of a checkpoint's density, for trainings on generated data (data.generated.file)."""
    from benchmark.generation import generate as generation
    from benchmark.models.spec import DataSpec
    from methods.training.devices import select_device

    settings = generation.GenerationSettings(count, steps, start, keep, seed)
    place = select_device(device)
    record = generation.generate(checkpoint, output, DataSpec(dataset), settings, scorer=scorer, device=place)
    typer.echo(f"{record['images']:,} images: {output}")
    if record["agreement"] is not None:
        typer.echo(f"{record['agreement']:.1f} % of them are of the wanted class by {record['judge']}")
