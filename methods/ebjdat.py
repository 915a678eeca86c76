"""EB-JDAT (energy-based joint distribution adversarial training, arXiv 2505.19459) on a host that models p(x, y).

    min_theta  L_host + w_energy h2 + w_adversarial CE(f(x_adv), y)

    L_host  w_density [E(x_p) - E(x_q)] + w_clean CE(f(x), y) of JEM, JEM++ or SADA-JEM, with its sampler and its update
    x_adv   argmax_{|x' - x| <= eps} E(x', y)   by 5 sign steps;   E(x) = -logsumexp f(x),  E(x, y) = -f(x)[y]
    h2      contrast: E(x_p) - E(x_adv);   pull: E(x_adv) - E(x_p);   absolute: |E(x_p) - E(x_adv)|

Paper and released code disagree; every disagreement is an option whose first value is the default.
Followed from the code and not the paper: sign steps, h2's sign (eq. 14 read as a loss), both CE terms, script weights.
Followed from the paper and not the code: the inner step raises E(x', y) (eqs. 11, 12); the code lowers it.
Ours: the attack is at the stated eps in [0, 1] and projected (``scale: eps-8``; the code's 8/255 in [-1, 1] is 4/255);
no perceptual term (the code's is the cosine of the model's own logits); E(x_p) and f(x_adv) are evaluated once; the
attack comes before the chains, so that its running statistics are those of the last images and not of chains.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from methods.backbones.perceptual import lpips_distance
from methods.primitives.energy import marginal_energy
from methods.primitives.energy_attack import EnergyAttack
from methods.primitives.losses import accuracy, cross_entropy
from methods.primitives.modes import frozen
from methods.primitives.ranks import mean
from methods.training.method import Batch, Card, Inner, Losses, Task
from methods.training.wrapper import Wrapper, filled


@dataclass(frozen=True)
class Config:
    host: Literal["jempp", "sadajem", "jem"] = "jempp"
    """The method whose sampler, weights of h1 and of the clean CE, and update are used."""
    host_options: dict[str, Any] = field(default_factory=dict)
    """The host's options; script: w_density and w_clean 1 (JEM: .45), 10 sampler steps."""
    w_energy: float = 0.1
    """h2; script .1, v1 .05."""
    w_adversarial: float = 1.0
    """CE of adversarial images; script 1, v1 .45."""
    attack: EnergyAttack = field(default_factory=EnergyAttack)
    """What the adversary raises, and how: the readings of paper and code."""
    attack_mode: Literal["eval", "train"] = "eval"
    h2: Literal["contrast", "pull", "absolute"] = "contrast"
    pairing: Literal["density", "labelled"] = "density"
    """Clean side of h2: x_p, unpaired (code), or the labelled images, paired (eq. 14)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "host_options", filled(self.host, self.host_options, "options.host_options"))


class EBJDAT(Wrapper):
    Config = Config
    several_devices = True
    card = Card(
        title="Your Classifier Can Do More: Towards Bridging the Gaps in Classification, Robustness, and Generation",
        arxiv="2505.19459",
        code="jkcjkc/EB-JDAT at 327ea16",
        family="energy-based",
        fidelity="official",
    )

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task, config.host, config.host_options)
        self.lpips = lpips_distance(task.image_shape) if config.attack.perceptual == "lpips" else None

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        return {"x_adv": self._attack(model, batch)} | self.base.inner(model, batch)

    def _attack(self, model: nn.Module, batch: Batch) -> Tensor:
        with frozen(model, training=self.config.attack_mode == "train"):
            return self.config.attack(model, batch.x, batch.y, self.task.threat, batch.generator("attack"), self.lpips)

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        config, hosted = self.config, self.base.loss(model, batch, inner)
        logits = model(inner["x_adv"])
        adversarial, energy_adv = mean(cross_entropy(logits, batch.y)), mean(marginal_energy(logits))
        gap = hosted.terms["energy_data" if config.pairing == "density" else "energy_clean"] - energy_adv
        h2 = {"contrast": gap, "pull": -gap, "absolute": gap.abs()}[config.h2]
        terms = {"energy_adv": energy_adv, "adversarial": adversarial, "accuracy_adv": accuracy(logits, batch.y)}
        return Losses(hosted.total + config.w_energy * h2 + config.w_adversarial * adversarial, hosted.terms | terms)
