"""JEM, the joint energy-based model (Grathwohl et al. 2020).

    min_theta  w_density [E(x_p) - E(x_q)] + w_clean CE(f(x), y),     E(x) = -logsumexp f(x)

    x_p  data, drawn independently of the labelled x;  x_q  20 steps of SGLD, x <- x - 1 grad E(x) + 0.01 N(0, 1) in
    [-1, 1], on chains of a replay buffer, 5 % of them restarted from uniform noise

The loss is :class:`methods.training.density.DensityMethod`'s.
Followed from the code and not the paper: step 1 with noise 0.01 (eq. 3 couples them), no clip and no clamp, so that
chains may leave the range of images; the network has no normalisation layer, and the chains run in eval mode.
Ours: images are in [0, 1], where the same step is 1/4 and the noise 0.005; a collapse is detected and rolled back
(recipe, ``guard``), as the authors did by hand.
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
    negatives: Chains = field(
        default_factory=lambda: Chains(
            sampler=SGLD(steps=20, step_size=0.25, clip=None, noise=0.005, clamp=False), mode="eval", start="uniform"
        )
    )
    """Paper: 20 steps, 10,000 chains, restarts with probability .05."""


class JEM(DensityMethod):
    Config = Config
    several_devices = True
    card = Card(
        title="Your Classifier is Secretly an Energy Based Model and You Should Treat it Like One",
        arxiv="1912.03263",
        code="wgrathwohl/JEM at 3d01161",
        family="energy-based",
        fidelity="official",
    )
