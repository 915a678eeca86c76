"""AutoAttack with other attacks or fewer iterations than *standard*: what papers and their code call AutoAttack too.

For explaining numbers that were not measured by the standard version, never to stand in its place. The cascade, the
random streams and the package are those of :mod:`benchmark.metrics.autoattack`: with the standard attacks, iterations
and queries, every verdict is the same.
"""

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from benchmark.attacks.autoattack import check as check_classes
from benchmark.attacks.cascade import ROBUST, STANDARD, WRONG_BOX, Cascade
from benchmark.evaluation import evidence
from benchmark.evaluation.shards import Shards
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.errors import InputError

NAME = "autoattack_custom"
VERSION = 1

Attack = Literal["apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "fab_t_wrong_box", "square"]


class Config(Strict):
    """The cascade."""

    attacks: Annotated[list[Attack], Field(default=list(STANDARD), min_length=1)]
    """In order. ``fab_t_wrong_box``: see :class:`benchmark.attacks.cascade.WrongBoxFAB`."""
    iterations: Annotated[int, Field(ge=1)] = 100
    """Number of iterations of APGD and FAB."""
    queries: Annotated[int, Field(ge=1)] = 5000
    """Number of queries of Square, for each image."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        named = ["fab_t" if name == WRONG_BOX else name for name in self.attacks]
        for name in named:
            if named.count(name) > 1:
                raise ValueError(f"{name} is there twice")
        return self

    @property
    def cascade(self) -> Cascade:
        """The cascade with these settings."""
        return Cascade(tuple(self.attacks), self.iterations, self.queries)


COLUMNS = {
    "autoattack_custom": Column("accuracy", "accuracy under a custom AutoAttack, %; not the standard one"),
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what the stored outcomes hold besides verdicts."""
    return {"evidence": evidence.FORMAT}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind the accuracy; the cascade's parts depend on the settings."""
    return {"accuracy": samples["broken_by"] == ROBUST}


def measure(data: Shards) -> Measurement:
    """Measure accuracy in percent, clean, after each attack of the cascade, and after all.

    Per image as :mod:`benchmark.metrics.autoattack`.

    Raises:
        InputError: the model has fewer classes than a loss of the attacks compares, or the threat model is not Linf
            and an attack is defined for Linf only.
        RuntimeError: what comes back is outside the threat model, or NaN.
    """
    config: Config = data.config
    threat, cascade = data.threat, config.cascade
    check_classes(data.subject, config.attacks)
    if WRONG_BOX in config.attacks and threat.norm != "Linf":
        raise InputError(f"{WRONG_BOX} is defined for Linf, not for {threat}.")
    arrays, flags = cascade.over(data)
    standing = f"not AutoAttack standard: {', '.join(config.attacks)}, {config.iterations} iterations"
    return data.finish(arrays, cascade.values(arrays, threat), [standing, *flags])
