"""The state of a training: what it has learnt, and its history.

The two are apart because a rollback undoes the first and not the second. The keys of the saved state are part of the
format of state.pt and good-*.pt: a training that was interrupted under an earlier version resumes under this one.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel

from methods.backbones import Classifier
from methods.primitives.samplers import ReplayBuffer
from methods.training.method import Method


@dataclass
class Best:
    """The best validation so far; on a tie, the later epoch."""

    score: float = -1.0
    """Accuracy that decides, in percent; -1 before the first validation."""
    epoch: int = -1
    validation: dict[str, float] = field(default_factory=dict)
    """Accuracies of that epoch by name, in percent."""


@dataclass
class History:
    """How a training got where it is; every field is a key of the saved state."""

    seconds: float = 0.0
    """Wall time spent in the loop, over all interruptions."""
    commits: list[str | None] = field(default_factory=list)
    """Commits of the code that trained, in order of their first use."""
    log_bytes: int = 0
    """Length of log.jsonl when the state was saved; a resumed training cuts off what follows."""
    interventions: list[dict[str, Any]] = field(default_factory=list)
    """Rollbacks so far, each with its cause and the step it went back to."""
    snapshots: list[str] = field(default_factory=list)
    """Names of the files in the run folder that a rollback may go back to, oldest first."""


@dataclass
class TrainState:
    """Everything that a training changes from step to step.

    On several devices each rank holds one, and all ranks save together, even though rank 0 alone writes: the parts of
    the replay buffers that lie on other ranks are fetched.
    """

    model: Classifier
    method: Method
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None = None
    """Moving average of the weights, where the recipe asks for one."""
    done: int = 0
    """Optimiser steps taken and not undone."""
    best: Best = field(default_factory=Best)
    history: History = field(default_factory=History)

    @property
    def result(self) -> Classifier:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.ema is None else cast(Classifier, self.ema.module)

    @property
    def restarts(self) -> int:
        """Number of rollbacks so far."""
        return len(self.history.interventions)

    def gather_buffers(self) -> None:
        """Bring the replay buffers up to date with all ranks."""
        for module in self.method.modules():
            if isinstance(module, ReplayBuffer):
                module.gather()

    def learnt(self) -> dict[str, Any]:
        """Return what a rollback undoes, as tensors and plain data."""
        self.gather_buffers()
        return {
            "done": self.done,
            "best": asdict(self.best),
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_learnt(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`learnt` returned, and leave the history as it is.

        Raises:
            KeyError, TypeError, RuntimeError, ValueError: the state is that of another training.
        """
        self.model.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.best = Best(**state["best"])
        self.done = state["done"]

    def state_dict(self) -> dict[str, Any]:
        """Return what was learnt and the history in one mapping, as tensors and plain data."""
        return self.learnt() | asdict(self.history)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; the commits of this process are added to those of the state.

        Raises:
            KeyError, TypeError, RuntimeError, ValueError: the state is that of another training.
        """
        self.load_learnt(state)
        history = History(**{item.name: state[item.name] for item in fields(History)})
        history.commits = list(dict.fromkeys([*history.commits, *self.history.commits]))
        self.history = history
