"""Weights files from elsewhere: what is read, what is refused, and how what a file holds is said."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmark.models.weights import contents, fill, misfit, read, refuse_page, state_dict
from methods.errors import InputError


@pytest.mark.parametrize(
    "start", [b"<!DOCTYPE html>", b"<!doctype HTML PUBLIC", b"\r\n <html lang='en'>", b"\xef\xbb\xbf<HTML><head>"]
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_html_page_is_no_weights_file(tmp_path: Path, start: bytes, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(start + b"<title>Google Drive - Virus scan warning</title>")
    with pytest.raises(InputError, match=f"weights.{suffix} is an HTML page and no weights file: the download"):
        read(path)


def test_what_is_no_page_is_not_called_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"note": "<!DOCTYPE html>"}, path)
    refuse_page(path)
    assert read(path) == {"note": "<!DOCTYPE html>"}


def test_arguments_and_numbers_of_a_training_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    numbers = [np.float64(1.5), np.float32(2.5), np.int64(3), np.bool_(True)]
    torch.save({"args": argparse.Namespace(lr=0.1, milestones=[1, 2]), "numbers": numbers}, path)
    before = set(torch.serialization.get_safe_globals())
    found = read(path)
    assert (found["args"].lr, found["args"].milestones) == (0.1, [1, 2])
    assert found["numbers"] == numbers
    assert set(torch.serialization.get_safe_globals()) == before


class Unsafe:
    """A class of the training script, which the file would import."""


def test_code_is_named_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"args": argparse.Namespace(), "state": Unsafe()}, path)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == f"{path} holds more than tensors ({__name__}.Unsafe), and is not unpickled."


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dict_is_found(tmp_path: Path, wrap: Any, prefix: str) -> None:
    path, state = tmp_path / "weights.pt", nn.Linear(2, 3).state_dict()
    torch.save(wrap({f"{prefix}{name}": value for name, value in state.items()}), path)
    found = state_dict(path)
    assert list(found) == ["weight", "bias"]
    model = nn.Linear(2, 3)
    fill(model, path)
    assert torch.equal(model.weight, state["weight"])


def test_every_key_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3, 2), "mean": torch.zeros(1)}, path)
    with pytest.raises(InputError) as caught:
        fill(nn.Linear(2, 3), path)
    sentence = f'The weights in {path} lack "bias" (1 such keys) and have the unexpected "mean" (1 such keys).'
    assert str(caught.value) == sentence


def test_dead_weights_of_the_network_of_trades_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its sub_block1, a copy of block1 that no forward pass sees (adversarial-training.md, 1.5)."""
    path, state = tmp_path / "weights.pt", {"module.weight": torch.ones(3, 2), "module.bias": torch.ones(3)}
    dead = {f"module.sub_block1.layer.{i}.conv1.weight": torch.zeros(1) for i in range(5)}
    torch.save({"state_dict": state | dead}, path)
    model = nn.Linear(2, 3)
    fill(model, path)
    assert torch.equal(model.weight, torch.ones(3, 2))
    sentence = f"5 weights sub_block1.* of {path} are left out: TRADES's network holds them and never uses them.\n"
    assert capsys.readouterr().err == sentence

    torch.save(state | {"module.sub_block2.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r'unexpected "sub_block2.weight" \(1 such keys\)'):
        fill(model, path)


def test_a_model_with_that_block_gets_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = tmp_path / "weights.pt", nn.ModuleDict({"sub_block1": nn.Linear(2, 3)})
    torch.save({"sub_block1.weight": torch.ones(3, 2), "sub_block1.bias": torch.ones(3)}, path)
    fill(model, path)
    assert torch.equal(model.get_parameter("sub_block1.weight"), torch.ones(3, 2))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"net.weight": torch.zeros(3, 2)}, 'its weights lack "weight" (2 such keys) and have the unexpected "net.we'),
        ({"weight": torch.zeros(3, 2)}, 'its weights lack "bias" (1 such keys)'),
        ({"weight": torch.zeros(9, 2), "bias": torch.zeros(3)}, "RuntimeError: Error(s) in loading state_dict for Li"),
    ],
)
def test_report_of_torch_is_cut_to_a_sentence(state: dict[str, Any], found: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(2, 3).load_state_dict(state)
    assert misfit(caught.value).startswith(found)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(2, 3), "a tensor [2, 3]"),
        ([1], "an object of type list"),
        ({}, "nothing"),
        ({str(i): torch.zeros(1) for i in range(9)}, "9 tensors"),
        ({"w": torch.zeros(1)}, '"w" (a tensor [1])'),
        (
            OrderedDict(model=OrderedDict(w=torch.zeros(1)), optimizer={"lr": 1}, epoch=3, best=0.5, seed=1, args=[]),
            '"model" (1 tensors) and "optimizer" (1 entries) and "epoch" (an object of type int) and "best" (an object '
            "of type float) and 2 more",
        ),
    ],
)
def test_contents_are_said(content: Any, said: str) -> None:
    assert contents(content) == said
