"""DHAT, debiased high-confidence adversarial training (Zhang et al. 2025).

    min_theta  mean CE(z', y) + w_align mean KL(p(x') || softmax(z- - c)) + w_orthogonal |z- - P c|_F / B

    x'  argmax_{|x' - x| <= eps} CE(f(x'), y)   by PGD-10,    z' = f(x')
    x-  argmin_{|x- - x| <= eps/2} CE(f(x-), y) + KL(p(x) || p(x-)) - KL(p(x') || p(x-))   by PGD-10,    z- = f(x-)
    c   f((1 - M) x-): the background, M = [Grad-CAM of the label > .1] in a frozen network, standard-trained
    P   z- c^T / |c c^T|_F, [B,B]: mixes the images of the batch

Followed from the code and not the paper, whose equations were not at hand: all. Nothing is detached, all weights are 1,
1e-12 is added to the probabilities of w_align's KL, and attacks run in train mode and move the running statistics. The
last term *lowers* what of z- is outside P c, against its name, "orthogonal enhancement"; ``orthogonality: projection``
lowers |P c|_F / B, the name's reading.
Ours: the frozen network trains itself where no checkpoint is given; Grad-CAM, of which the repository lacks the file,
is that of pytorch-grad-cam, which its calls name.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from methods.data import ImageSet
from methods.errors import not_negative
from methods.primitives.attacks import PGD
from methods.primitives.losses import accuracy, cross_entropy, kl_divergence
from methods.primitives.modes import AttackMode, attacked
from methods.primitives.saliency import grad_cam
from methods.primitives.threat import ThreatModel
from methods.training.auxiliary import Pretrained, PretrainedConfig
from methods.training.method import Batch, Card, Inner, Losses, Method, Task


@dataclass(frozen=True)
class Config:
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=0.25))
    """10 steps of 2/255 at eps 8/255."""
    inverse: PGD = field(default_factory=lambda: PGD(steps=10, step_size=0.5))
    """10 steps of 2/255; a fraction of its own radius."""
    inverse_radius: float = 0.5
    """Radius of the inverse attack as a fraction of eps; 4/255 of 8/255."""
    attack_mode: AttackMode = "train"
    """BatchNorm during both attacks."""
    w_align: float = 1.0
    w_orthogonal: float = 1.0
    orthogonality: Literal["residual", "projection"] = "residual"
    """What of z- is lowered: the part outside the background's projection (code), or that projection (its name)."""
    threshold: float = 0.1
    """Grad-CAM above which a pixel is foreground."""
    auxiliary: PretrainedConfig = field(default_factory=PretrainedConfig)
    """The network that Grad-CAM looks into; the code's is a ResNet-18."""

    def __post_init__(self) -> None:
        for name in ("inverse_radius", "w_align", "w_orthogonal", "threshold"):
            not_negative(f"options.{name}", getattr(self, name))


class DHAT(Method):
    Config = Config
    card = Card(
        title="Towards Adversarial Robustness via Debiased High-Confidence Logit Alignment",
        arxiv="2408.06079",
        code="KejiaZhang-Robust/DHAT at 52de6fe",
        family="adversarial training",
        fidelity="official",
    )

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task)
        self.auxiliary = Pretrained(config.auxiliary, task)
        self.nearer = ThreatModel(task.threat.norm, task.threat.eps * Fraction(config.inverse_radius))

    def check(self, model: nn.Module) -> None:
        # Refuses a network that does not give its feature maps.
        _ = self.auxiliary.network.num_features

    def prepare(self, train: ImageSet) -> None:
        self.auxiliary.prepare(train)

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        background, x, y = ~self._foreground(batch), batch.x, batch.y
        with attacked(model, self.config.attack_mode):
            random = batch.generator("attack")
            x_adv = self.config.attack(lambda x: cross_entropy(model(x), y), x, self.task.threat, random)
            with torch.no_grad():
                clean, adversarial = model(x), model(x_adv)

            def confidence(x_inverse: Tensor) -> Tensor:
                z = model(x_inverse)
                return kl_divergence(adversarial, z) - kl_divergence(clean, z) - cross_entropy(z, y)

            x_inverse = self.config.inverse(confidence, x, self.nearer, batch.generator("inverse"))
        return {"x_adv": x_adv, "x_inverse": x_inverse, "x_background": x_inverse * background}

    def _foreground(self, batch: Batch) -> Tensor:
        self.auxiliary.ready()
        network = self.auxiliary.network
        return grad_cam(network.maps, network.from_maps, batch.x, batch.y) > self.config.threshold

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        config, z_adv = self.config, model(inner["x_adv"])
        z, c = model(inner["x_inverse"]), model(inner["x_background"])
        adversarial = cross_entropy(z_adv, batch.y).mean()
        # z - c spreads more than logits do: what lies under 1e-12 neither counts nor has a gradient.
        p, q = (softmax(logits.float(), 1) + 1e-12 for logits in (z_adv, z - c))
        align = (p * (p.log() - q.log())).sum(1).mean()
        projected = (z @ c.T) / (c @ c.T).norm() @ c
        lowered = z - projected if config.orthogonality == "residual" else projected
        orthogonal = lowered.norm() / len(z)
        terms = {"adversarial": adversarial, "align": align, "orthogonal": orthogonal}
        terms |= {"accuracy_adv": accuracy(z_adv, batch.y), "accuracy_inverse": accuracy(z, batch.y)}
        return Losses(adversarial + config.w_align * align + config.w_orthogonal * orthogonal, terms)
