"""JEM++ (Yang and Ji 2021): JEM made stable and fast.

    min_theta  w_density [E(x_p) - E(x_q)] + w_clean CE(f(x), y),     E(x) = -logsumexp f(x)

    x_q  proximal YOPO Langevin dynamics (PYLD): M = 10 outer steps, each N = 5 inner ones of 0.2 against the gradient
    frozen at the first layer's output and clipped at 1, in [-1, 1] and clamped there; chains of a replay buffer, 5 % of
    them restarted from a Gaussian per class (informative initialisation)

The loss is :class:`methods.training.density.DensityMethod`'s.
Followed from the code and not the paper: no noise in the chains; chains run in train mode, so that batch statistics
couple them and move the running ones; BatchNorm momentum 0.9 (recipe).
Ours: PYLD's inner loop is its exact single step, 5 x 0.2 of [-1, 1] being 1/4 of [0, 1]
(``sampler: {inner_steps: 5, step_size: 0.05}`` is the loop itself); the Gaussians are fitted to images without
augmentation or noise; x_p is forwarded after the chains and not before (only running statistics see the order).
"""

from dataclasses import dataclass, field

from methods.primitives.negatives import Chains
from methods.primitives.samplers import SGLD
from methods.training.density import DensityMethod
from methods.training.method import Card


@dataclass(frozen=True)
class Config:
    w_density: float = 1.0
    """log p(x); paper: 1."""
    w_clean: float = 1.0
    """log p(y|x); paper: 1."""
    negatives: Chains = field(default_factory=lambda: Chains(sampler=SGLD(steps=10, step_size=0.25, clip=2.0)))
    """Paper: M = 5, 10 or 20 outer steps, 10,000 chains, restarts with probability .05."""


class JEMPP(DensityMethod):
    Config = Config
    several_devices = True
    card = Card(
        title="JEM++: Improved Techniques for Training JEM",
        arxiv="2109.09032",
        code="sndnyang/JEMPP at fba6ba5",
        family="energy-based",
        fidelity="official",
    )
