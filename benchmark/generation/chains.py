"""Markov chains that sample a checkpoint's density: their sampler, their energy, and BatchNorm's mode meanwhile."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import Tensor

from benchmark.evaluation.batching import in_batches
from benchmark.models.subject import Subject
from benchmark.results.entry import Value
from benchmark.specs.schema import Strict
from methods.backbones import Classifier
from methods.primitives.energy import joint_energy, marginal_energy
from methods.primitives.samplers import SGLD

Energy = Callable[[Tensor, Tensor], Tensor]
"""(Images [B,C,H,W], labels [B]) -> energies [B]."""


class ChainSettings(Strict):
    """Settings of the chains; lengths and steps in [0, 1] pixel units.

    A density is sampled by the chains it was trained with: step, clip, noise and clamp are those that the checkpoint
    names. Those below are for the checkpoints that name none, and for all of them with ``sampler: protocol``.
    """

    sampler: Literal["own", "protocol"] = "own"
    steps: Annotated[int, Field(ge=1)] = 100
    step_size: Annotated[float, Field(gt=0)] = 0.25
    """Factor of the gradient; JEM family: 1 in [-1, 1] units."""
    clip: Annotated[float, Field(gt=0)] | None = 2.0
    """Bound of each entry of the gradient; JEM++: 1 in [-1, 1] units."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of a step's noise."""
    energy: Literal["joint", "marginal"] = "joint"
    mode: Literal["own", "eval", "train"] = "own"
    """BatchNorm's mode while sampling; own: what the checkpoint says."""


@dataclass(frozen=True)
class Chains:
    """The chains of one checkpoint."""

    subject: Subject
    settings: ChainSettings

    @property
    def _own(self) -> dict[str, Any]:
        """What the checkpoint says of its chains."""
        return self.subject.metadata.get("generation", {})

    @property
    def energy_name(self) -> str:
        """Which energy the chains descend: scalar (a head of its own, whatever the settings say), joint or marginal."""
        return "scalar" if self._own.get("energy") == "scalar" else self.settings.energy

    @property
    def mode(self) -> str:
        """The network's mode while the chains run: train or eval."""
        return self._own.get("mode", "eval") if self.settings.mode == "own" else self.settings.mode

    @property
    def sampler(self) -> SGLD:
        """The sampler: the checkpoint's step, clip, noise and clamp, in the number of steps that is asked for."""
        settings, own = self.settings, self._own.get("sampler") if self.settings.sampler == "own" else None
        if own is None:
            return SGLD(settings.steps, settings.step_size, settings.clip, settings.noise)
        # The literal inner loop needs the first layer apart, and is one step N times as long.
        length = own["step_size"] * own["inner_steps"]
        return SGLD(settings.steps, length, own["clip"], own["noise"], own["clamp"])

    def energy(self, batch_size: int) -> Energy:
        """Return (images, labels) -> energies [B], in passes of at most ``batch_size`` images."""
        model, name = self.subject.model, self.energy_name

        def of_all(x: Tensor, y: Tensor) -> Tensor:
            if name == "scalar":
                return cast(Classifier, model).scalar_energy(x)
            return marginal_energy(model(x)) if name == "marginal" else joint_energy(model(x), y)

        return lambda x, y: in_batches(of_all, y, batch_size)(x)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides where the chains end, besides weights, starts and random numbers; for the key of the store."""
        return {"energy": self.energy_name, "mode": self.mode, "sampler": asdict(self.sampler)}

    @property
    def passport(self) -> dict[str, Value]:
        """How the chains run, as values of a measurement."""
        sampler = self.sampler
        return {
            "energy": self.energy_name,
            "mode": self.mode,
            **{name: getattr(sampler, name) for name in ("steps", "step_size", "clip", "noise")},
        }
