"""LAS-AT: adversarial training with learnable attack strategies (Jia et al. 2022), around another method.

    min_theta  L_base(theta; x_adv),     x_adv by PGD with (eps, step, steps)_i ~ pi(. | x_i) for each image
    max_pi     E[R],    R = min(L_base(theta; x_adv), limit) + w_robust acc(theta', PGD-10) + w_clean acc(theta', x)

    theta'  theta after one step on x_adv;   pi  a softmax per parameter, by REINFORCE: min -R sum mean_i log pi

On pgd_at it is LAS-AT, on trades LAS-TRADES (pi chooses beta_i too), on awp LAS-AWP.
Followed from the code and not the paper: one reward a batch and no baseline; the policy learns before the model, on a
crafted batch of its own, and then chooses again in eval mode; LAS-AT trains on images beyond eps (``clip: false``),
LAS-AWP projects them only for the model; the step to theta' has no momentum, and smoothed labels in LAS-AWP too.
Ours: theta' is not a copy, and in LAS-AWP its perturbation is that of the smoothed loss too; the loss in R is in eval
mode, in LAS-TRADES too, whose code moves the statistics by it; the reward sees what the model is trained on (LAS-AWP on
CIFAR-10 forgets to normalise there; here the network does); no choice of the kind of attack, of which there is one; no
clamp on accuracies, which cannot reach it; no list of log-likelihoods, which nothing reads; the policy's rate has
milestones of its own in shares of the training (LAS-AT's count steps that its schedule never reaches: none).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.backbones import BackboneConfig
from methods.errors import InputError
from methods.primitives.classifier_attacks import ce_attack, trades_attack
from methods.primitives.per_sample_attack import Choices, PerSamplePGD
from methods.primitives.reinforce import Policy, PolicySGD
from methods.training.auxiliary import auxiliary
from methods.training.method import Batch, Card, Inner, Losses, Task, Update
from methods.training.reward import Reward, check_mass, smoothed
from methods.training.wrapper import Wrapper, WrapperConfig


@dataclass(frozen=True)
class Config(WrapperConfig):
    choices: Choices = field(default_factory=Choices)
    """What the policy chooses from, in multiples of the threat's eps."""
    objective: Literal["cross-entropy", "divergence"] = "cross-entropy"
    """What the attack raises; LAS-TRADES: the divergence from the clean prediction."""
    start: Literal["uniform", "normal"] = "uniform"
    """LAS-TRADES: normal."""
    clip: bool = False
    """Project training images onto the threat's own ball; LAS-AWP: true."""
    label_mass: float = 0.7
    """Probability of the true class in the base's targets, the rest on the others; LAS-TRADES, LAS-AWP: 1, labels."""
    strategy: BackboneConfig = field(default_factory=lambda: BackboneConfig("resnet", 18, 4, normalize="none"))
    """Network of the policy; code: ResNet-18."""
    every: int = 20
    """Steps of the model to one of the policy; LAS-TRADES, LAS-AWP: 1."""
    optimizer: PolicySGD = field(default_factory=PolicySGD)
    """Learning rate of the policy; LAS-AT: 1e-4, without momentum or decay."""
    reward: Reward = field(default_factory=Reward)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mass("options.label_mass", self.label_mass)
        if self.every < 1:
            raise InputError(f"options.every must be at least 1, not {self.every}.")


class LASAT(Wrapper):
    Config = Config
    card = Card(
        title="LAS-AT: Adversarial Training with Learnable Attack Strategy",
        arxiv="2203.06616",
        code="jiaxiaojunQAQ/LAS-AT at ee756b7",
        family="adversarial training",
        fidelity="official",
    )
    chosen: Tensor
    rewards: Tensor

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task)
        self.refuse_other_attacks()
        if config.choices.beta and "trades" not in (config.base, config.base_options.get("base")):
            raise InputError(f'options.choices.beta weighs the robust term of trades, which "{config.base}" lacks.')
        sizes = [len(values) for values in config.choices.named.values()]
        self.policy = Policy(auxiliary(config.strategy, task, sum(sizes), "options.strategy"), sizes, config.optimizer)
        self.register_buffer("chosen", torch.zeros(len(sizes)))
        self.register_buffer("rewards", torch.zeros(3))

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        picks = self.policy.sample(batch.x, batch.generator("strategy"))
        inner = self._craft(model, batch, picks, batch.generator("attack"))
        if self.config.clip:
            inner["x_adv"] = self.task.threat.project(inner["x_adv"], batch.x)
        return inner

    def _craft(self, model: nn.Module, batch: Batch, picks: list[Tensor], random: torch.Generator) -> Inner:
        chosen = self.config.choices.values(picks)
        self.chosen.copy_(torch.stack([values.float().mean() for values in chosen.values()]))
        attack = PerSamplePGD(chosen["eps"], chosen["step_size"], chosen["steps"], self.config.start)
        if self.config.objective == "divergence":
            x_adv = trades_attack(attack, model, batch.x, self.task.threat, random)
        else:
            x_adv = ce_attack(attack, model, batch.x, batch.y, self.task.threat, random)
        return {"x_adv": x_adv} | {name: chosen[name] for name in chosen.keys() & {"beta"}}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        return self.base.loss(model, smoothed(batch, self.config.label_mass, self.task.num_classes), inner)

    def step(self, model: nn.Module, batch: Batch, update: Update) -> Losses:
        def reward(picks: list[Tensor]) -> Tensor:
            inner = self._craft(model, batch, picks, batch.generator("policy-attack"))
            self.rewards.copy_(self.config.reward(self.base, model, batch, inner, update.lr))
            return self.rewards.sum()

        if (batch.step + 1) % self.config.every == 0:
            self.policy.learn(batch.x, batch.generator("policy"), reward, batch.progress)
        return super().step(model, batch, update)

    def report(self) -> dict[str, Tensor]:
        names = [f"chosen_{name}" for name in self.config.choices.named]
        names += ["reward_loss", "reward_robust", "reward_clean"]
        return self.base.report() | dict(zip(names, [*self.chosen, *self.rewards], strict=True))
