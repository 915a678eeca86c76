"""The state of a training, and the ways back to an earlier one: after an interruption, and after a collapse.

What was learnt and its history are apart, because a rollback undoes the first and not the second. state.pt is the
checkpoint: everything, as it is now. good-<rollbacks>-<step>.pt is a snapshot: what had been learnt at a sound
validation, and the files of the best weights so far, since later ones may be those of a training that has begun to
collapse. Their keys are part of the format: a training interrupted under an earlier version resumes under this one.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel

from methods.backbones import Classifier
from methods.errors import InputError
from methods.files import write
from methods.primitives.samplers import ReplayBuffer
from methods.training.checkpoint import load_state, save_state
from methods.training.guard import Alarm, Guard
from methods.training.method import Method
from methods.training.run_folder import STATE, RunLog, best_files, remove_snapshots, writes

_GENERATIONS = 2
"""Snapshots that are kept: a collapse may have begun, unnoticed, before the latest."""


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
        """Take over what :meth:`state_dict` returned; it raises what :meth:`load_learnt` does.

        The commits of this process are added to those of the state.
        """
        self.load_learnt(state)
        history = History(**{item.name: state[item.name] for item in fields(History)})
        history.commits = list(dict.fromkeys([*history.commits, *self.history.commits]))
        self.history = history

    def record(self) -> dict[str, Any]:
        """Return what the manifest says of the state, as plain JSON data."""
        rows = self.method.attack_rows
        return {
            "steps": self.done,
            "best": asdict(self.best),
            "restarts": self.restarts,
            "interventions": self.history.interventions,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "precision": "bf16" if self.model.autocast else "float32",
            "seconds": round(self.history.seconds, 1),
        } | ({} if rows is None else {"attack_rows": rows})


def save(state: TrainState, folder: Path) -> None:
    """Write the checkpoint that an interrupted training resumes from; all ranks call it, and the first writes."""
    saved = state.state_dict()
    if writes():
        save_state(folder / STATE, saved)
        # Only now does no checkpoint mention the others.
        remove_snapshots(folder, keep=state.history.snapshots)


def resume(state: TrainState, folder: Path) -> None:
    """Load the checkpoint where there is one; remove what an interrupted training left that belongs to none.

    Raises:
        InputError: the checkpoint is truncated, foreign, or that of another run.
    """
    # What a killed process was writing.
    for stale in folder.rglob("*.tmp") if writes() else ():
        stale.unlink()
    path = folder / STATE
    if path.is_file():
        _load(load_state(path), state.load_state_dict, path)
        return
    for stale in best_files(folder) if writes() else ():
        if stale.is_file():  # and not where the folder is none, which the first write says in a sentence
            stale.unlink()


def _load(saved: dict[str, Any], load: Callable[[dict[str, Any]], None], path: Path) -> None:
    try:
        load(saved)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} belongs to another run; delete it to train from the start.") from error


class Rollbacks:
    """The snapshots of a run, and the way back to them, as far as its guard asks for it."""

    def __init__(self, guard: Guard, state: TrainState, folder: Path) -> None:
        self._guard, self._state, self._folder = guard, state, folder
        self.wanted = guard.action == "rollback"

    @property
    def lr_factor(self) -> float:
        """What the rollbacks so far multiply the learning rate with."""
        return self._guard.lr_factor**self._state.restarts

    def may_go_back(self, alarm: Alarm) -> bool:
        """Tell whether a collapse is answered with a rollback; else the training has failed."""
        return self.wanted and not alarm.hopeless and self._state.restarts < self._guard.max_restarts

    def snapshot(self) -> None:
        """Keep what is learnt, and the best weights' files, for a rollback; all ranks call it, and the first writes."""
        state = self._state
        name = f"good-{state.restarts}-{state.done}.pt"
        learnt = state.learnt()
        if writes():
            files = {
                file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
                for file in best_files(self._folder)
                if file.is_file()
            }
            save_state(self._folder / name, learnt | {"files": files})
        state.history.snapshots = [*state.history.snapshots, name][-_GENERATIONS:]

    def go_back(self, seen: dict[str, Any], sentence: str, log: RunLog) -> None:
        """Return to the older snapshot, and put on record that and why, in the log and for the user.

        ``seen`` says where and by which limit the collapse was seen, and so does ``sentence``, in words.

        Raises:
            InputError: the snapshot is truncated, foreign, or that of another run.
        """
        state = self._state
        path = self._folder / state.history.snapshots[0]
        saved = load_state(path)
        intervention = seen | {"to": saved["done"], "restarts": state.restarts + 1}
        state.history.interventions.append(intervention)
        if writes():
            log.observe(intervention | {"event": "rollback", "lr_factor": self.lr_factor})
            print(f"{sentence} Going back to step {saved['done']}.", file=sys.stderr)
        _load(saved, state.load_learnt, path)
        for file in best_files(self._folder) if writes() else ():
            if file.name in saved["files"]:
                content = saved["files"][file.name].numpy().tobytes()
                write(file, lambda temporary, content=content: temporary.write_bytes(content))
            else:
                file.unlink(missing_ok=True)
        state.history.snapshots = state.history.snapshots[:1]
