"""What a training is made of: its model, method, optimiser and streams, and what is refused before it starts.

Weights and streams depend on the seed alone, never on what was drawn before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from methods import get
from methods.backbones import Classifier, build
from methods.data import Dataset, ImageSet
from methods.data.streams import MixedStream, Stream
from methods.errors import InputError
from methods.primitives import ranks
from methods.primitives.batch_norm import synchronise
from methods.primitives.random import derive
from methods.training.compiled import Compiled
from methods.training.config import Experiment
from methods.training.devices import placed, uses_bf16
from methods.training.method import Method, Task
from methods.training.optim import Schedule, Updater, average, normalisation, optimizer
from methods.training.state import TrainState


@dataclass(frozen=True)
class Setup:
    """The parts of one training, on its device and ready for the first step."""

    state: TrainState
    network: nn.Module
    """The model as the method calls it: itself, or its compiled passes."""
    train_set: ImageSet
    generated: ImageSet | None
    """Generated images that are mixed into the labelled batches; None without them."""
    steps_per_epoch: int
    total_steps: int
    schedule: Schedule
    update: Updater
    undecayed: list[str]
    """Names of the parameters that weight decay leaves alone."""


def set_up(experiment: Experiment, dataset: Dataset, device: torch.device) -> Setup:
    """Build what an experiment trains, on one device; on several, every rank builds the same.

    Raises:
        InputError: the backbone, the method or the batch size does not fit the data, or the method its options.
    """
    config = experiment.train
    model = build_model(experiment, dataset).to(device)
    model.autocast = torch.bfloat16 if uses_bf16(config.precision, device) else None
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    train_set = placed(dataset.train, device)
    generated = None if dataset.generated is None else placed(dataset.generated, device)
    method = build_method(experiment, dataset).to(device)
    with _seeded(derive(experiment.seed, "prepare")):
        method.prepare(train_set)
    if ranks.count() > 1:
        synchronise(model)
        synchronise(method)
    labelled, _ = streams(experiment, train_set, generated, method.density, experiment.seed)
    total_steps = config.epochs * labelled.steps_per_epoch
    modules = {"model": model, "method": method}
    named = {f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()}
    norms = [f"{part}.{name}" for part, module in modules.items() for name in normalisation(module)]
    undecayed = [] if config.decay_norm else norms
    trainable = [parameter for parameter in named.values() if parameter.requires_grad]
    chosen = optimizer(trainable, config, [named[name] for name in undecayed])
    ema = None if config.ema is None else AveragedModel(model, multi_avg_fn=average(config, total_steps))
    network: nn.Module = model
    if config.compile:
        own = [of.stop - of.start for of in map(ranks.share, (config.batch_size, density_batch(experiment)))]
        # Where ranks exchange batch statistics, no graph can hold a pass in train mode.
        network = Compiled(model, own, train_mode=ranks.count() == 1)
    return Setup(
        TrainState(model, method, chosen, ema),
        network,
        train_set,
        generated,
        labelled.steps_per_epoch,
        total_steps,
        Schedule(config, total_steps, labelled.steps_per_epoch),
        Updater(chosen, config.gradient_clip),
        undecayed,
    )


def check(experiment: Experiment, dataset: Dataset, devices: int = 1) -> None:
    """Refuse, before anything is written, an experiment that cannot be trained on a data set.

    Raises:
        InputError: the backbone does not take the images, there are fewer of them than a batch holds, the method
            refuses its options or the backbone, or it cannot be trained on so many devices.
    """
    with torch.device("meta"):
        model = build_model(experiment, dataset)
    method = build_method(experiment, dataset)
    method.check(model)
    streams(experiment, dataset.train, dataset.generated, method.density, experiment.seed)
    if devices > 1:
        _check_several(experiment, method, model, devices)


def _check_several(experiment: Experiment, method: Method, model: Classifier, devices: int) -> None:
    for part in method.modules():
        # What a subclass of a method does is not known from its parent.
        if isinstance(part, Method) and not ("several_devices" in vars(type(part)) and part.several_devices):
            name = type(part).__module__.rpartition(".")[2]
            inside = "" if name == experiment.method else f", the method inside {experiment.method},"
            raise InputError(
                f"{name}{inside} is not trained on several devices: what it computes is not known to be the same when "
                "each holds a share of the batch. Leave out --devices."
            )
    smallest = min(experiment.train.batch_size, density_batch(experiment))
    if smallest < devices:
        raise InputError(f"A batch of {smallest} images cannot be shared among {devices} devices.")
    synchronise(model)
    synchronise(method)


def build_model(experiment: Experiment, dataset: Dataset) -> Classifier:
    """Return the freshly initialised backbone of an experiment; its weights depend on the seed alone."""
    with _seeded(derive(experiment.seed, "init")):
        return build(experiment.backbone, dataset.num_classes, dataset.image_shape, dataset.mean, dataset.std)


def build_method(experiment: Experiment, dataset: Dataset) -> Method:
    """Return the method of an experiment, not yet prepared; weights of its own depend on the seed alone."""
    task = Task(
        experiment.threat_model,
        dataset.num_classes,
        dataset.image_shape,
        experiment.seed,
        density_batch(experiment),
        experiment.train.batch_size,
        experiment.train.epochs,
    )
    with _seeded(derive(experiment.seed, "method")):
        return get(experiment.method)(experiment.options, task)


def streams(
    experiment: Experiment, train_set: ImageSet, generated: ImageSet | None, density: bool, seed: int
) -> tuple[Stream | MixedStream, Stream | None]:
    """Return the stream of labelled batches and, with ``density``, that of batches for p(x), drawn independently.

    A share of each labelled batch is of the ``generated`` images, where there are any; ``seed`` decides order and
    augmentation.

    Raises:
        InputError: a batch holds more images than there are.
    """
    data, train = experiment.data, experiment.train
    if generated is None:
        labelled = Stream(train_set, train.batch_size, data.augment, seed, "labelled", train.drop_last)
    else:
        labelled = MixedStream(
            train_set, generated, data.generated.share, train.batch_size, data.augment, seed, "labelled"
        )
    if not density:
        return labelled, None
    return labelled, Stream(train_set, density_batch(experiment), data.density, seed, "density", True)


def density_batch(experiment: Experiment) -> int:
    """Return how many images a step draws for p(x): as many as labelled ones, unless the recipe says otherwise."""
    return experiment.data.density_batch or experiment.train.batch_size


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator for a while; afterwards that of the CPU is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
