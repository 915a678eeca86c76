"""Options that several commands share, in groups, and the decorator that lets a command take a group as one value.

A group is a dataclass whose fields are options. Nothing heavy is imported here: ``--help`` reads this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from benchmark.engines import Engine
from methods.errors import InputError

if TYPE_CHECKING:
    from benchmark.models.spec import ModelSpec
    from benchmark.runs.jobs import Evaluation
    from benchmark.runs.plan import Plan

ChainStart = Literal["class_gaussian", "uniform", "pca"]
Which = Literal["best", "last"]
DatasetName = Annotated[
    str, typer.Option(help="digits, cifar10, cifar100, cifar10-jpeg, imagefolder:PATH or npz:FILE.")
]
ModelDataset = Annotated[str | None, typer.Option("--dataset", help="Data set; a checkpoint's own by default.")]
ThreatModel = Annotated[
    str | None, typer.Option("--threat", help='Threat model, such as "Linf:8/255"; the data set\'s own by default.')
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seeds = Annotated[str, typer.Option(help="Seeds, comma-separated.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.epochs=5."),
]
ProtocolId = Annotated[
    str | None, typer.Option("--protocol", help="Protocol id or file; the data set's own by default.")
]
Limit = Annotated[int | None, typer.Option(help="Only the first N test images; the entry is stamped partial.")]
WhichCheckpoint = Annotated[
    Which, typer.Option("--which", help="Checkpoint: best on validation, or of the last epoch.")
]
Weights = Annotated[Path | None, typer.Option(help="Weights file or run folder, where none lies beside the entry.")]
Runs = Annotated[Path, typer.Option(help="Folder of trainings and measurements.")]
Leaderboards = Annotated[Path, typer.Option(help="Folder of entries and tables.")]
Workers = Annotated[int, typer.Option(help="Number of runs, or parts of evaluations, that are done at a time.")]


@dataclass(frozen=True)
class Machine:
    """Which workers do the work, and on which device."""

    device: Device = "auto"
    workers: Workers = 1
    engine: Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = "local"
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT; one of this machine by default."),
    ] = None

    def started(self) -> tuple[Engine, str]:
        """Return the engine and its device: "auto" on a cluster is what the cluster has."""
        engine = Engine(self.engine, self.workers, self.address)
        return engine, engine.device(self.device)


@dataclass(frozen=True)
class Training:
    """What is trained: all but the recipes."""

    dataset: DatasetName = "digits"
    protocol: ProtocolId = None
    seeds: Seeds = "0"
    devices: Annotated[int, typer.Option(help="CPU processes or GPUs that share each training, batch by batch.")] = 1
    overrides: Settings = None
    config: Annotated[Path | None, typer.Option(help="YAML file laid over recipe and data-set overlay.")] = None
    runs: Runs = Path("runs")

    def plan(self, recipes: Sequence[str], device: str) -> Plan:
        """Return the plan for recipes on a device."""
        from benchmark.runs.plan import Plan

        return Plan(
            recipes=recipes,
            dataset=self.dataset,
            seeds=seed_numbers(self.seeds),
            protocol=self.protocol,
            overrides=self.overrides or [],
            config=self.config,
            device=device,
            devices=self.devices,
            runs=self.runs,
        )


@dataclass(frozen=True)
class Measuring:
    """What is measured of a model."""

    metrics: Annotated[
        str | None, typer.Option(help="Metrics, comma-separated; by default all of the protocol or ablation.")
    ] = None
    limit: Limit = None
    batch_size: Annotated[int | None, typer.Option(help="Images a forward pass; the protocol's shard by default.")] = (
        None
    )
    which: WhichCheckpoint = "best"
    surrogate: Annotated[
        Path | None,
        typer.Option(help="Checkpoint on which transfer attacks are made; the reference network by default."),
    ] = None

    def evaluation(self, engine: Engine, device: str, metrics: Sequence[str] | None = None) -> Evaluation:
        """Return how to evaluate; ``metrics`` are measured where the user names none."""
        from benchmark.evaluation.selection import Selection
        from benchmark.runs.jobs import Evaluation

        chosen = metrics if self.metrics is None else names(self.metrics)
        selection = Selection(chosen, self.limit, self.batch_size)
        return Evaluation(selection, self.which, self.surrogate, device, engine)


@dataclass(frozen=True)
class Model:
    """Which model."""

    checkpoint: Annotated[Path | None, typer.Option(help="Run folder or weights file of this project.")] = None
    model: Annotated[
        str | None,
        typer.Option(metavar="FILE:FACTORY", help="Function of a file or module that makes your model, or timm:NAME."),
    ] = None
    weights: Annotated[Path | None, typer.Option(help="State dict for --model (.pt, .pth or .safetensors).")] = None
    robustbench: Annotated[str | None, typer.Option(metavar="MODEL_ID", help="Model of RobustBench's zoo.")] = None
    model_dir: Annotated[
        Path | None,
        typer.Option(help="Where weights of the zoo lie: DIR/cifar10/Linf/MODEL_ID.pt; models by default."),
    ] = None

    def spec(self, which: Which = "best", threat: str | None = None) -> ModelSpec:
        """Return the model: ``which`` checkpoint, or by the norm of ``threat`` the one of the zoo."""
        from benchmark.models.spec import DEFAULT_THREAT, ModelSpec

        return ModelSpec(
            checkpoint=self.checkpoint,
            which=which,
            factory=self.model,
            weights=self.weights,
            robustbench=self.robustbench,
            threat=threat or DEFAULT_THREAT,
            model_dir=self.model_dir,
        )


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command whose parameters may be groups of options take their fields as options of its own."""
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: given.annotation for name, given in own.items() if is_dataclass(given.annotation)}
    parameters: list[inspect.Parameter] = []
    for name, given in own.items():
        if name not in groups:
            parameters.append(given.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in fields(groups[name])
        ]

    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def names(text: str) -> list[str]:
    """Return the names in a comma-separated text, each once.

    Raises:
        InputError: there is none.
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise InputError(f'"{text}" names nothing.')
    return list(dict.fromkeys(found))


def seed_numbers(text: str) -> list[int]:
    """Return the seeds in a comma-separated text, each once.

    Raises:
        InputError: one is no whole number from 0.
    """
    try:
        seeds = [int(part) for part in names(text)]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0:
        raise InputError(f'--seeds takes whole numbers from 0, such as 0,1,2, not "{text}".')
    return seeds


def finish(failures: Sequence[str]) -> None:
    """Tell what failed, and end with status 1 where anything did."""
    for failure in failures:
        typer.echo(f"failed: {failure}", err=True)
    if failures:
        raise typer.Exit(1)
