"""Plans: recipes x seeds on one data set, resolved and checked before the first training starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmark.models.spec import DEFAULT_THREAT, DataSpec
from benchmark.specs import protocol as protocols
from benchmark.specs import recipes
from benchmark.specs.protocol import Protocol
from methods.data import Dataset
from methods.training.config import Experiment, experiment
from methods.training.devices import select_device


@dataclass(frozen=True)
class Plan:
    """Recipes x seeds on one data set.

    Raises:
        InputError: at the first use of what is wrong.
    """

    recipes: Sequence[str]
    dataset: str
    seeds: Sequence[int] = (0,)
    protocol: str | None = None
    overrides: Sequence[str] = ()
    config: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings laid over ``config`` and ``overrides``: what a row of an ablation changes."""
    device: str = "auto"
    devices: int = 1
    """Number of devices of each training."""
    runs: Path = Path("runs")
    kept: dict[Any, Any] = field(default_factory=dict)
    """What this process has loaded; plans may share it."""

    @cached_property
    def evaluation_protocol(self) -> Protocol:
        """The protocol of the evaluation; its threat model is also that of recipes that name none."""
        name = self.protocol or protocols.default(recipes.canonical(self.dataset))
        chosen = self.changes.get("threat") or recipes.overlay(self.dataset).get("threat", DEFAULT_THREAT)
        return protocols.load(name, None if protocols.threat_of(name) else str(chosen))

    @cached_property
    def changes(self) -> dict[str, Any]:
        """The settings that ``--config``, ``--set`` and an ablation's row change."""
        return recipes.merge(recipes.changes(self.config, self.overrides), self.settings)

    @cached_property
    def experiments(self) -> list[Experiment]:
        """One experiment for each recipe and seed, recipes outermost."""
        names = dict.fromkeys(recipes.find_recipe(recipe) for recipe in self.recipes)
        threat = self.evaluation_protocol.threat
        return [
            experiment(recipes.settings(name, self.dataset, seed=seed, changes=self.changes, threat=threat))
            for name in names
            for seed in self.seeds
        ]

    @cached_property
    def torch_device(self) -> torch.device:
        """The device of the trainings."""
        return select_device(self.device)

    def data_spec(self, run: Experiment) -> DataSpec:
        """Return the data set as an experiment splits it."""
        return DataSpec(run.dataset, run.data.validation, run.data.size, run.data.generated.path)

    def data(self, run: Experiment) -> Dataset:
        """Load the data set as an experiment splits it, once."""
        return self.data_spec(run).load(self.kept)
