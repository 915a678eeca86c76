"""Ways back to an earlier state: to the last checkpoint after an interruption, to a good state after a collapse.

state.pt is the checkpoint: everything, as it is now. good-<rollbacks>-<step>.pt is a snapshot: what had been learnt at
a sound validation, and the files of the best weights so far, since later ones may be those of a training that has begun
to collapse.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from methods.errors import InputError
from methods.files import write
from methods.training.checkpoint import load_state, save_state
from methods.training.guard import Alarm, Guard
from methods.training.run_folder import STATE, best_files, remove_snapshots, writes
from methods.training.run_log import RunLog
from methods.training.state import TrainState

_GENERATIONS = 2
"""Snapshots that are kept: a collapse may have begun, unnoticed, before the latest."""


def save(state: TrainState, folder: Path) -> None:
    """Write the checkpoint that an interrupted training resumes from; all ranks call it, and the first writes."""
    saved = state.state_dict()
    if not writes():
        return
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
        stale.unlink(missing_ok=True)


def _load(saved: dict[str, Any], load: Callable[[dict[str, Any]], None], path: Path) -> None:
    try:
        load(saved)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} belongs to another run; delete it to train from the start.") from error


class Rollbacks:
    """The snapshots of a run, and the way back to them, as far as its guard asks for it."""

    def __init__(self, guard: Guard, state: TrainState, folder: Path) -> None:
        self._guard, self._state, self._folder = guard, state, folder

    @property
    def wanted(self) -> bool:
        """Whether the guard goes back after a collapse, and does not stop at once."""
        return self._guard.action == "rollback"

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
        """Return to the older snapshot, and put on record that and why.

        Args:
            seen: where and by which limit the collapse was seen.
            sentence: the same for the user.
            log: gets a line for the intervention.

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
