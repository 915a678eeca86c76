"""A method around another, which it takes by name from the registry, so that no combination needs a file."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from methods import get
from methods.data import ImageSet
from methods.errors import InputError
from methods.training.config import overlay
from methods.training.method import Batch, Inner, Losses, Method, Task, Update


class Filled(dict[str, Any]):
    """All options of a method, its defaults filled in."""

    of: str | None = None
    """That method; None in a copy, whose options are settings like any others."""


def filled(name: str, options: dict[str, Any], where: str) -> Filled:
    """Return all options of the method ``name``, so that the record of a run names each and not only the changed ones.

    Given options are dropped if they were filled in for another method, because changing the method alone must not hand
    it the settings of the one before. ``where`` is their key in a recipe, for the error.

    Raises:
        InputError: there is no such method, or it refuses an option.
    """
    if isinstance(options, Filled) and options.of not in (None, name):
        options = {}
    complete = Filled(asdict(overlay(get(name).Config(), options, where)))
    complete.of = name
    return complete


@dataclass(frozen=True)
class WrapperConfig:
    """What every wrapper is told of the method inside; a subclass adds its own fields."""

    base: str = "pgd_at"
    """The method inside, by its name in the registry."""
    base_options: dict[str, Any] = field(default_factory=dict)
    """Its options."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_options", filled(self.base, self.base_options, "options.base_options"))


class Wrapper(Method):
    """Does in everything as the method inside, ``base``; a subclass overrides the part that it changes."""

    def __init__(self, config: Any, task: Task, base: str | None = None, options: dict[str, Any] | None = None) -> None:
        super().__init__(config, task)
        inside = get(config.base if base is None else base)
        settings = config.base_options if options is None else options
        self.base: Method = inside(overlay(inside.Config(), settings, "options"), task)

    @property
    def density(self) -> bool:
        return self.base.density

    @property
    def any_attack(self) -> bool:
        return self.base.any_attack

    def refuse_other_attacks(self) -> None:
        """Raise InputError where the loss inside needs more of its inner problem than adversarial images."""
        if not self.base.any_attack:
            raise InputError(
                f'The loss of "{self.config.base}" needs more than x_adv of its own inner problem, in place of which '
                "another attack is to come: take another options.base."
            )

    def check(self, model: nn.Module) -> None:
        self.base.check(model)

    def prepare(self, train: ImageSet) -> None:
        self.base.prepare(train)

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        return self.base.inner(model, batch)

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        return self.base.loss(model, batch, inner)

    def descend(self, model: nn.Module, batch: Batch, update: Update, loss: Callable[[], Losses]) -> Losses:
        return self.base.descend(model, batch, update, loss)

    def report(self) -> dict[str, Tensor]:
        return self.base.report()

    @property
    def samples(self) -> Tensor | None:
        return self.base.samples

    @property
    def generation(self) -> dict[str, Any]:
        return self.base.generation
