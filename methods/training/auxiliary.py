"""Networks of a method's own beside the one that is trained: teachers, strategies, and frozen ones to look into."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from methods.backbones import BackboneConfig, Classifier, build
from methods.data import Augment, ImageSet, Stream
from methods.data.images import channel_statistics
from methods.errors import InputError
from methods.primitives.losses import cross_entropy
from methods.primitives.random import derive
from methods.training.checkpoint import load_checkpoint
from methods.training.config import TrainConfig
from methods.training.method import Task
from methods.training.optim import Schedule, Updater, optimizer


def auxiliary(config: BackboneConfig, task: Task, outputs: int, where: str) -> Classifier:
    """Build a network with so many logits, in train mode, for the images of the task; ``where`` is its key in recipes.

    Raises:
        InputError: it normalises by the data set's statistics, which a method is not told.
    """
    if config.normalize == "dataset":
        raise InputError(f'{where}.normalize is "none" or "half": a method does not know the statistics of its data.')
    return build(config, outputs, task.image_shape, (), ())


@dataclass(frozen=True)
class PretrainedConfig:
    """Where the network comes from."""

    checkpoint: str | None = None
    """A run folder or weights file of this project; null: trained by cross-entropy when it is first needed."""
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("resnet", 18, 4))
    """The network that is then trained."""
    epochs: int = 100
    """Passes over the training images: SGD, batches of 128, rate .1 on a cosine, momentum .9, weight decay 5e-4."""
    augment: Augment = field(default_factory=lambda: Augment(padding=4, flip=True))

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"The auxiliary network trains for at least one epoch, not {self.epochs}.")


class Pretrained(nn.Module):
    """A classifier in eval mode and without gradients, which a method looks at and never moves.

    Its weights are in the method's state, with a flag that they are trained, so that a resume does not train it again.

    Attributes:
        network: images in [0, 1] -> logits [B,K].

    Raises:
        InputError: no checkpoint there, or one of other images or classes.
    """

    fitted: Tensor

    def __init__(self, config: PretrainedConfig, task: Task) -> None:
        super().__init__()
        self.config, self.seed = config, task.seed
        self.images: ImageSet | None = None
        channels = task.image_shape[0]
        if config.checkpoint is not None:
            self.network = load_checkpoint(Path(config.checkpoint)).model
            found, wanted = (self.network.num_classes, self.network.image_shape), (task.num_classes, task.image_shape)
            if found != wanted:
                told = [f"{k} classes of {'x'.join(map(str, shape))} images" for k, shape in (found, wanted)]
                raise InputError(f"The auxiliary network in {config.checkpoint} tells {told[0]}, not {told[1]}.")
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(task.seed, "auxiliary"))
                unset = (0.5,) * channels
                self.network = build(config.backbone, task.num_classes, task.image_shape, unset, unset)
        self.network.requires_grad_(False).eval()
        self.register_buffer("fitted", torch.tensor(config.checkpoint is not None))

    def prepare(self, train: ImageSet) -> None:
        """Take the images to train on, and their statistics where the network normalises with them."""
        self.images = train
        if self.config.checkpoint is None and self.config.backbone.normalize == "dataset":
            for buffer, values in zip(
                (self.network.mean, self.network.std), channel_statistics(train.images), strict=True
            ):
                buffer.copy_(torch.tensor(values).view_as(buffer))

    def ready(self) -> None:
        """Train the network unless that is done; a function of the seed and the images alone."""
        if self.fitted:
            return
        if self.images is None:
            raise RuntimeError("prepare(train) comes before the first step")
        settings, network = TrainConfig(epochs=self.config.epochs, schedule="cosine"), self.network
        stream = Stream(self.images, settings.batch_size, self.config.augment, self.seed, "auxiliary", False)
        steps = settings.epochs * stream.steps_per_epoch
        said = f"{settings.epochs} epochs of {len(self.images)} images"
        print(f"Training the auxiliary network ({self.config.backbone.architecture}): {said}.", file=sys.stderr)
        network.requires_grad_(True).train()
        descent = optimizer(network.parameters(), settings)
        update, schedule = Updater(descent, None), Schedule(settings, steps, stream.steps_per_epoch)
        with torch.enable_grad():
            for step in range(steps):
                schedule.set(descent, step)
                x, y = (part.to(self.fitted.device) for part in stream.batch(step))
                update(cross_entropy(network(x), y).mean())
        network.zero_grad()
        network.requires_grad_(False).eval()
        self.fitted.fill_(True)
