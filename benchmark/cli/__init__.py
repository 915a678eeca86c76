"""The command line: each command is a thin shell over the Python API of this package.

Exit status: 0 done; 2 bad usage or bad input, told in one sentence; 1 a training or a metric failed (the rest is kept).
Nothing heavy is imported before a command needs it: ``--help`` and ``list`` stay instant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, cast

import typer

from benchmark.engines import Engine, WorkFailed
from methods.errors import InputError, nearest

if TYPE_CHECKING:
    from benchmark.runs.experiments import Evaluation, Plan

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Trilemma: clean accuracy, adversarial robustness and generation, reproduced.",
    no_args_is_help=False,
)

exports = typer.Typer(help="Write results in the form that another project takes.", no_args_is_help=False)
app.add_typer(exports, name="export")

# The base of typer's own usage errors, which lies in click or in typer's private copy of it, as the version has it.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])

INTERRUPTED = 130
"""The exit status after Ctrl-C, which newer versions of typer return and older ones leave to the caller."""

KINDS = ("methods", "recipes", "datasets", "protocols", "metrics", "ablations", "paper", "scales")

ChainStart = Literal["class_gaussian", "uniform", "pca"]
Dataset = Annotated[str, typer.Option(help="digits, cifar10, cifar100, cifar10-jpeg, imagefolder:PATH or npz:FILE.")]
Methods = Annotated[str, typer.Option(help="Recipes, comma-separated (see: list recipes).")]
Seeds = Annotated[str, typer.Option(help="Seeds, comma-separated.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Devices = Annotated[int, typer.Option(help="CPU processes or GPUs that share each training, batch by batch.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.epochs=5."),
]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file laid over recipe and data-set overlay.")]
ProtocolId = Annotated[str | None, typer.Option(help="Protocol id or file; the data set's own by default.")]
Metrics = Annotated[str | None, typer.Option(help="Metrics, comma-separated; all of the protocol's by default.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N test images; the entry is stamped partial.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a forward pass; the protocol's shard by default.")]
Runs = Annotated[Path, typer.Option(help="Where trainings and measurements are kept.")]
Leaderboards = Annotated[Path, typer.Option(help="Where entries and tables are kept.")]
ModelFactory = Annotated[
    str | None,
    typer.Option(metavar="FILE:FACTORY", help="A function of a file or module that makes a model, or timm:NAME."),
]
ModelWeights = Annotated[Path | None, typer.Option(help="State dict for --model (.pt, .pth or .safetensors).")]
ZooModel = Annotated[str | None, typer.Option(metavar="MODEL_ID", help="A model of RobustBench's zoo.")]
ModelDir = Annotated[
    Path | None,
    typer.Option(help="Where weights of the zoo lie: DIR/cifar10/Linf/MODEL_ID.pt; models by default."),
]
Workers = Annotated[int, typer.Option(help="Runs, or parts of evaluations, that are done at a time.")]
EngineName = Annotated[str, typer.Option("--engine", help="local: processes of this machine; ray: a Ray cluster.")]
Address = Annotated[
    str | None,
    typer.Option(help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT; one of this machine by default."),
]
Surrogate = Annotated[
    Path | None, typer.Option(help="Checkpoint on which transfer attacks are made; the reference network by default.")
]
Which = Annotated[Literal["best", "last"], typer.Option(help="Checkpoint: best on validation, or of the last epoch.")]


@app.command("list")
def list_command(kind: Annotated[str | None, typer.Argument(help=" | ".join(KINDS))] = None) -> None:
    """Show the methods, recipes, datasets, protocols, metrics, ablations, and what can be reproduced of the paper."""
    if kind is not None and kind not in KINDS:
        raise InputError(f'There is no list of "{kind}".{nearest(kind, KINDS)} Choose from: {", ".join(KINDS)}.')
    for shown in KINDS if kind is None else (kind,):
        if kind is None:
            typer.echo(f"{shown}:")
        for line in _listing(shown):
            typer.echo(line if kind else f"  {line}")


def _listing(kind: str) -> list[str]:
    if kind == "methods":
        import methods

        return methods.names()
    if kind == "datasets":
        from methods.data.catalogue import NAMES

        width = max(map(len, NAMES))
        return [f"{name:<{width}}  {description}" for name, description in NAMES.items()]
    if kind == "metrics":
        from benchmark.specs import registry

        return registry.names()
    from benchmark.specs import recipes

    if kind == "paper":
        found = {name: recipes.read_yaml(path) for name, path in recipes.papers().items()}
        width = max(map(len, found))
        return [f"{name:<{width}}  {content.get('title', '')}" for name, content in found.items()]
    folders = {"recipes": recipes.recipes, "protocols": recipes.protocols}
    folders |= {"ablations": recipes.ablations, "scales": recipes.scales}
    return list(folders[kind]())


@app.command()
def run(
    methods: Methods,
    dataset: Dataset = "digits",
    protocol: ProtocolId = None,
    seeds: Seeds = "0",
    device: Device = "auto",
    devices: Devices = 1,
    overrides: Settings = None,
    config: ConfigFile = None,
    metrics: Metrics = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    which: Which = "best",
    surrogate: Surrogate = None,
    workers: Workers = 1,
    engine: EngineName = "local",
    address: Address = None,
    runs: Runs = Path("runs"),
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Train each recipe with each seed, evaluate the checkpoints, and rebuild the leaderboards."""
    from benchmark.runs import pipeline

    chosen = Engine(engine, workers, address)
    plan = _plan(_names(methods), dataset, protocol, seeds, chosen.device(device), overrides, config, runs, devices)
    _finish(pipeline.run(plan, _evaluation(metrics, limit, batch_size, which, surrogate, chosen), leaderboards))


@app.command()
def train(
    methods: Methods,
    dataset: Dataset = "digits",
    protocol: ProtocolId = None,
    seeds: Seeds = "0",
    device: Device = "auto",
    devices: Devices = 1,
    overrides: Settings = None,
    config: ConfigFile = None,
    workers: Workers = 1,
    engine: EngineName = "local",
    address: Address = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train each recipe with each seed; finished runs are skipped, interrupted ones resume."""
    from benchmark.runs import pipeline

    chosen = Engine(engine, workers, address)
    plan = _plan(_names(methods), dataset, protocol, seeds, chosen.device(device), overrides, config, runs, devices)
    _finish(pipeline.train_all(plan, chosen))


@app.command()
def ablate(
    name: Annotated[str, typer.Argument(help="An ablation (see: list ablations).")],
    dataset: Dataset = "digits",
    protocol: ProtocolId = None,
    seeds: Seeds = "0",
    device: Device = "auto",
    devices: Devices = 1,
    overrides: Settings = None,
    config: ConfigFile = None,
    metrics: Annotated[str | None, typer.Option(help="Metrics, comma-separated; the ablation's by default.")] = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    which: Which = "best",
    surrogate: Surrogate = None,
    workers: Workers = 1,
    engine: EngineName = "local",
    address: Address = None,
    runs: Runs = Path("runs"),
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Train and evaluate every row of an ablation, and rebuild its table and figure."""
    from benchmark.leaderboard import ablation
    from benchmark.runs import pipeline

    chosen, workforce = ablation.load(name), Engine(engine, workers, address)
    plan = _plan([chosen.recipe], dataset, protocol, seeds, workforce.device(device), overrides, config, runs, devices)
    evaluation = _evaluation(metrics or ",".join(chosen.metrics), limit, batch_size, which, surrogate, workforce)
    _finish(pipeline.ablate(name, plan, evaluation, leaderboards))


@app.command()
def evaluate(
    dataset: Annotated[str | None, typer.Option(help="Data set; a checkpoint's own by default.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A run folder or a weights file of this project.")] = None,
    model: ModelFactory = None,
    weights: ModelWeights = None,
    robustbench: ZooModel = None,
    model_dir: ModelDir = None,
    threat: Annotated[str | None, typer.Option(help='Such as "Linf:8/255"; the protocol\'s by default.')] = None,
    protocol: ProtocolId = None,
    metrics: Metrics = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    which: Which = "best",
    device: Device = "auto",
    overrides: Settings = None,
    surrogate: Surrogate = None,
    workers: Workers = 1,
    engine: EngineName = "local",
    address: Address = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only store every N-th shard from the I-th on; a call without it assembles."),
    ] = None,
    runs: Runs = Path("runs"),
    json_file: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write the result here.")] = None,
) -> None:
    """Evaluate a checkpoint, a stranger's model, or one of RobustBench's zoo, under a protocol."""
    from benchmark.evaluation.parts import Part
    from benchmark.runs import experiments

    chosen = Engine(engine, workers, address)
    failures = experiments.evaluate_one(
        _evaluation(metrics, limit, batch_size, which, surrogate, chosen),
        checkpoint=checkpoint,
        factory=model,
        weights=weights,
        robustbench=robustbench,
        model_dir=model_dir,
        dataset=dataset,
        threat=threat,
        protocol=protocol,
        device=chosen.device(device),
        overrides=overrides or [],
        runs=runs,
        json_file=json_file,
        part=None if shard is None else Part.parse(shard),
    )
    _finish(failures)


@app.command()
def leaderboard(leaderboards: Leaderboards = Path("leaderboards")) -> None:
    """Rebuild every table from the entries alone."""
    from benchmark.leaderboard.tables import rebuild

    for path in rebuild(leaderboards):
        typer.echo(path)


@app.command()
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


@app.command()
def reproduce(
    target: Annotated[str, typer.Argument(help="A table or figure of the paper (see: list paper), all, or gap.")],
    scale: Annotated[str | None, typer.Option(help="digits (the default), small or paper.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, comma-separated; the scale's by default.")] = None,
    overrides: Settings = None,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Train nothing: show the entries there are.")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="For gap: a run folder or a weights file.")] = None,
    model: ModelFactory = None,
    weights: ModelWeights = None,
    dataset: Annotated[str | None, typer.Option(help="For gap: data set; a checkpoint's own by default.")] = None,
    threat: Annotated[str | None, typer.Option(help="For gap: threat model of the standard protocol.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="For gap: the released evaluator; by default its host's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="For gap: only the first N test images.")] = None,
    which: Annotated[Literal["best", "last"] | None, typer.Option(help="For gap: checkpoint, best by default.")] = None,
    workers: Workers = 1,
    engine: EngineName = "local",
    address: Address = None,
    device: Device = "auto",
    runs: Runs = Path("runs"),
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Reproduce a table or figure of the paper beside what it reports, training and measuring what is missing.

    `reproduce gap --checkpoint C` walks a checkpoint from the evaluator released with EB-JDAT to the standard protocol,
    one difference at a time, and says what each contributes.
    """
    of_tables = {"--scale": scale, "--seeds": seeds, "--set": overrides, "--tables-only": tables_only or None}
    of_gap = {"--checkpoint": checkpoint, "--model": model, "--weights": weights, "--dataset": dataset}
    of_gap |= {"--threat": threat, "--protocol": protocol, "--limit": limit, "--which": which}
    own, others = (of_gap, of_tables) if target == "gap" else (of_tables, of_gap)
    if given := [name for name, value in others.items() if value is not None and value != []]:
        raise InputError(f"{given[0]} is not for reproduce {target}, which takes {', '.join(own)}.")
    chosen = Engine(engine, workers, address)
    if target == "gap":
        from benchmark.runs import experiments
        from benchmark.studies import gap

        evaluation = _evaluation(None, limit, None, which or "best", None, chosen)
        found, written = experiments.explain_gap(
            evaluation,
            checkpoint=checkpoint,
            factory=model,
            weights=weights,
            dataset=dataset,
            threat=threat,
            released=protocol,
            device=chosen.device(device),
            runs=runs,
            folder=leaderboards / "reproduction" / "gap",
        )
        for line in gap.lines(found):
            typer.echo(line)
        for path in written:
            typer.echo(path)
        return
    from benchmark.studies import targets
    from benchmark.studies.reproduce import Reproduction

    targets, its_scale = targets.targets(target), targets.scale(scale or "digits")
    reproduction = Reproduction(
        targets=targets,
        scale=its_scale,
        seeds=its_scale.seeds if seeds is None else _seeds(seeds),
        overrides=overrides or [],
        device=chosen.device(device),
        runs=runs,
        leaderboards=leaderboards,
        engine=chosen,
    )
    failures = [] if tables_only else reproduction.run()
    for path in reproduction.write():
        typer.echo(path)
    _finish(failures)


@app.command()
def verify(
    entries: Annotated[list[Path], typer.Argument(help="Entries, or folders of them.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights that do not lie beside the entry.")] = None,
    device: Device = "auto",
) -> None:
    """Recompute entries from their evidence with one forward pass; status 1 where one does not hold."""
    from benchmark.evaluation import bundle
    from methods.training.trainer import select_device

    place = select_device(device)
    found = [done for path in entries for done in bundle.verify_all(path, checkpoint=checkpoint, device=place)]
    for verification in found:
        typer.echo(f"{'verified' if verification.passed else 'FAILED'}: {verification.entry}")
        for line in verification.lines:
            if len(found) == 1 or line.passed is False:
                mark = {True: "ok", False: "FAILED", None: "not checked"}[line.passed]
                typer.echo(f"  {mark}: {line.check}: {line.detail}")
    good = sum(verification.passed for verification in found)
    typer.echo(f"{good} of {len(found)} entries verified. {bundle.MEANING}")
    if good < len(found):
        raise typer.Exit(1)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="An entry's file, or a row of a table: a recipe.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    dataset: Annotated[str | None, typer.Option(help="Of the table, where there are several.")] = None,
    threat: Annotated[str | None, typer.Option(help='Of the table, such as "Linf:8/255".')] = None,
    protocol: Annotated[str | None, typer.Option(help="Of the table: its id, or the beginning of its hash.")] = None,
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Say whether one row is ahead of another, by a paired test on the same images."""
    from benchmark.leaderboard import compare as comparisons

    found = comparisons.compare(a, b, leaderboards, dataset=dataset, threat=threat, protocol=protocol)
    for line in comparisons.lines(found):
        typer.echo(line)


@app.command()
def doctor(
    dataset: Annotated[str | None, typer.Option(help="Data set; a checkpoint's own by default.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A run folder or a weights file of this project.")] = None,
    model: ModelFactory = None,
    weights: ModelWeights = None,
    robustbench: ZooModel = None,
    model_dir: ModelDir = None,
    threat: Annotated[str, typer.Option(help="Whose norm finds the model in the zoo.")] = "Linf:8/255",
    eps: Annotated[str | None, typer.Option(help='A stated eps in the model\'s own units, such as "8/255".')] = None,
    input_range: Annotated[
        str | None, typer.Option(help='Where its inputs are said to lie: "-1,1", "cifar10", "imagenet", ...')
    ] = None,
    which: Which = "best",
    device: Device = "auto",
) -> None:
    """Examine a model before anything is measured on it; status 1 where something is wrong."""
    from benchmark.models.doctor import render
    from benchmark.runs import experiments

    diagnosis = experiments.diagnose(
        checkpoint=checkpoint,
        factory=model,
        weights=weights,
        robustbench=robustbench,
        model_dir=model_dir,
        dataset=dataset,
        threat=threat,
        which=which,
        device=device,
        eps=eps,
        input_range=input_range,
    )
    typer.echo(render(diagnosis))
    if diagnosis.status:
        raise typer.Exit(diagnosis.status)


@app.command()
def court(
    dataset: Dataset = "digits",
    threat: Annotated[str | None, typer.Option(help='Such as "Linf:8/255"; the data set\'s own by default.')] = None,
    device: Device = "auto",
    leaderboards: Leaderboards = Path("leaderboards"),
    workers: Workers = 1,
) -> None:
    """Measure how often the masking court catches planted failures, and accuses the checkpoints of a table."""
    from benchmark.runs import experiments

    found, folder = experiments.court_power(dataset, threat, leaderboards, device, Engine(workers=workers))
    typer.echo(found.summary())
    typer.echo(f"tables: {folder}")


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Option(help="Weights file or run folder whose density is sampled.")],
    output: Annotated[Path, typer.Option(help="The .npz file to write; a picture and a record lie beside it.")],
    dataset: Dataset = "digits",
    count: Annotated[int, typer.Option(help="Images to keep.")] = 1000,
    steps: Annotated[int, typer.Option(help="Of each chain.")] = 40,
    start: Annotated[ChainStart, typer.Option(help="Where chains begin.")] = "class_gaussian",
    keep: Annotated[float, typer.Option(help="Share of the generated images to keep: the scorer's surest.")] = 1.0,
    scorer: Annotated[Path | None, typer.Option(help="Checkpoint that scores them, say a standard one.")] = None,
    seed: Annotated[int, typer.Option(help="Of the chains.")] = 0,
    device: Device = "auto",
) -> None:
    """Generate images of a checkpoint's density, for trainings on generated data (data.generated.file)."""
    from benchmark.runs import experiments

    record = experiments.generate(
        checkpoint,
        output,
        dataset,
        count=count,
        steps=steps,
        start=start,
        keep=keep,
        scorer=scorer,
        seed=seed,
        device=device,
    )
    typer.echo(f"{record['images']:,} images: {output}")
    if record["agreement"] is not None:
        typer.echo(f"{record['agreement']:.1f} % of them are of the wanted class by {record['judge']}")


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
    checkpoint: Annotated[Path | None, typer.Option(help="Weights that do not lie beside the entry.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write; submissions/<model id> by default.")] = None,
    device: Device = "auto",
) -> None:
    """Write what RobustBench needs of a new model, and prove it by RobustBench's own code; status 1 where it fails."""
    from benchmark.robustbench import submission
    from benchmark.robustbench.claim import Paper
    from methods.training.trainer import select_device

    about = Paper(paper, authors, url, venue, reported, footnote)
    place = select_device(device)
    kit = submission.export(entry, model_id, about, checkpoint=checkpoint, output=output, device=place)
    for line in kit.lines:
        mark = {True: "ok", False: "FAILED", None: "not checked"}[line.passed]
        typer.echo(f"{mark}: {line.check}: {line.detail}")
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


def _plan(
    recipes: Sequence[str],
    dataset: str,
    protocol: str | None,
    seeds: str,
    device: str,
    overrides: Sequence[str] | None,
    config: Path | None,
    runs: Path,
    devices: int = 1,
) -> Plan:
    from benchmark.runs.experiments import Plan

    return Plan(
        recipes=recipes,
        dataset=dataset,
        seeds=_seeds(seeds),
        protocol=protocol,
        overrides=overrides or [],
        config=config,
        device=device,
        devices=devices,
        runs=runs,
    )


def _evaluation(
    metrics: str | None,
    limit: int | None,
    batch_size: int | None,
    which: Literal["best", "last"],
    surrogate: Path | None,
    engine: Engine,
) -> Evaluation:
    from benchmark.runs.experiments import Evaluation

    chosen = None if metrics is None else _names(metrics)
    return Evaluation(chosen, limit, batch_size, which, surrogate, engine)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f'"{text}" names nothing.')
    return list(dict.fromkeys(names))


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in _names(text)]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0:
        raise InputError(f'--seeds takes whole numbers from 0, such as 0,1,2, not "{text}".')
    return seeds


def _finish(failures: list[str]) -> None:
    for failure in failures:
        typer.echo(f"failed: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


def _refuse(message: str) -> NoReturn:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    raise SystemExit(2)


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
