"""LBGAT: learnable boundary guided adversarial training (Cui et al. 2021).

    min_{s, t}  mean (z_s(x_adv) - z_t(x))^2 + mean CE(z_t(x), y) + beta * mean KL(p_s(x) || p_s(x_adv))

    z_s, z_t  logits of the student, which is the model, and of a teacher that is trained with it; the square is
              averaged over the B K logits;  x_adv = argmax KL(p_s(x) || p_s(x'))  by TRADES's PGD-10 on the student

Followed from the code and not the paper: the square's gradient reaches the teacher too; one optimiser holds both; the
teacher is always in train mode; the student sees adversarial images before clean ones, at beta 0 too, where the clean
ones only move its running statistics.
Ours: p_s(x) of the attack is computed once and not at every step; at beta 0 the clean pass has no backward pass; the
teacher's running statistics, which nothing reads, stay as they are; optionally the teacher begins at a checkpoint.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.backbones import BackboneConfig
from methods.data import ImageSet
from methods.errors import InputError, not_negative
from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import trades_attack
from methods.primitives.losses import accuracy, cross_entropy, kl_divergence
from methods.primitives.modes import mode
from methods.primitives.ranks import mean
from methods.training.auxiliary import auxiliary
from methods.training.checkpoint import load_checkpoint
from methods.training.method import Batch, Card, Inner, Losses, Method, Task


@dataclass(frozen=True)
class Config:
    beta: float = 0.0
    """Weight of the student's divergence; LBGAT0: 0, LBGAT6: 6."""
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=7 / 31, start="normal"))
    """Script: 10 steps of .007 at eps .031."""
    teacher: BackboneConfig = field(default_factory=lambda: BackboneConfig("resnet-highres", 18, 4, normalize="none"))
    """Script: ResNet-18 with strides 1, 1, 2, 2."""
    teacher_checkpoint: str | None = None
    """Weights file or run folder of this project at which the teacher begins; from scratch if null, as the script."""

    def __post_init__(self) -> None:
        not_negative("options.beta", self.beta)


class LBGAT(Method):
    Config = Config
    any_attack = True
    several_devices = True
    card = Card(
        title="Learnable Boundary Guided Adversarial Training",
        arxiv="2011.11164",
        code="dvlab-research/LBGAT at f7f33f0",
        family="adversarial training",
        fidelity="official",
    )

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task)
        self.teacher = auxiliary(config.teacher, task, task.num_classes, "options.teacher")

    def check(self, model: nn.Module) -> None:
        self._load_teacher()

    def prepare(self, train: ImageSet) -> None:
        self._load_teacher()

    def _load_teacher(self) -> None:
        path = self.config.teacher_checkpoint
        if path is None:
            return
        weights = load_checkpoint(Path(path)).model.state_dict()
        try:
            self.teacher.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"The network in {path} is not the one that options.teacher describes.") from error

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        attack, random = self.config.attack, batch.generator("attack")
        return {"x_adv": trades_attack(attack, model, batch.x, self.task.threat, random)}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        adversarial = model(inner["x_adv"])
        with nullcontext() if self.config.beta else torch.no_grad():
            clean: Tensor = model(batch.x)
        with mode(self.teacher, training=True, track_statistics=False):
            guide = self.teacher(batch.x)
        boundary = mean((adversarial.float() - guide.float()).square())
        teacher, robust = mean(cross_entropy(guide, batch.y)), mean(kl_divergence(clean, adversarial))
        return Losses(
            boundary + teacher + self.config.beta * robust,
            {
                "boundary": boundary,
                "teacher": teacher,
                "robust": robust,
                "accuracy_teacher": accuracy(guide, batch.y),
                "accuracy_clean": accuracy(clean, batch.y),
                "accuracy_adv": accuracy(adversarial, batch.y),
            },
        )
