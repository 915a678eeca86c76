"""Your own model: where it comes from, how it is filled with weights, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmark.models.factory import from_factory, make_model
from methods.data import Dataset
from methods.errors import InputError

CPU = torch.device("cpu")

GOOD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.linear = nn.Linear(36, num_classes)
    def forward(self, x):
        return self.linear(x.flatten(1))

def make():
    torch.manual_seed(0)
    return Net().eval()
"""

SHIFTED = GOOD.replace("(x.flatten(1))", "(x.flatten(1) - self.shift)").replace(
    "        self.linear", "        self.shift = 0.0\n        self.linear"
)
"""Weights of a linear model on images in [-1,1]."""


@pytest.fixture
def dataset(toy: Any) -> Dataset:
    return toy().dataset


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """Write a file with the good model and more, and return FILE:FACTORY."""

    def write(more: str = "", factory: str = "make", good: str = GOOD) -> str:
        path = tmp_path / "model.py"
        path.write_text(good + more)
        return f"{path}:{factory}"

    return write


def test_your_own_model_becomes_a_subject(written: Callable[..., str], dataset: Dataset) -> None:
    spec = written()
    subject = from_factory(spec, None, dataset, CPU)
    assert subject.flags == []
    assert (subject.name, subject.kind) == ("model:make", "external")
    assert (subject.num_classes, subject.image_shape) == (4, (1, 6, 6))
    assert (subject.architecture, subject.parameters) == ("Net", 36 * 4 + 4)
    assert subject.logits(dataset.test.unit()).shape == (24, 4)
    assert torch.equal(subject.logits(dataset.test.unit(), 7)[:7], subject.logits(dataset.test.unit()[:7]))


def test_factory_gets_the_number_of_classes_if_it_asks(written: Callable[..., str], toy: Any) -> None:
    spec = written("def sized(num_classes):\n    return Net(num_classes).eval()\n", "sized")
    assert from_factory(spec, None, toy(classes=7).dataset, CPU).num_classes == 7


def test_factory_gets_the_shape_of_an_image_if_it_asks(written: Callable[..., str], dataset: Dataset) -> None:
    spec = written("def sized(image_shape):\n    assert image_shape == (1, 6, 6)\n    return Net().eval()\n", "sized")
    assert from_factory(spec, None, dataset, CPU).image_shape == (1, 6, 6)


def test_factory_may_be_a_class_of_an_importable_module(dataset: Dataset, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "foreign_package").mkdir()
    (tmp_path / "foreign_package" / "__init__.py").write_text("")
    (tmp_path / "foreign_package" / "nets.py").write_text(GOOD)
    subject = from_factory("foreign_package.nets:Net", None, dataset, CPU)
    assert subject.flags == ["the model was in training mode"]
    assert not any(module.training for module in subject.model.modules())


def test_file_may_import_its_neighbours(written: Callable[..., str], dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_model.py").write_text(GOOD)
    spec = written("import neighbour_of_model\nother = neighbour_of_model.make\n", "other", good="")
    assert from_factory(spec, None, dataset, CPU).flags == []


@pytest.mark.parametrize(
    ("body", "flag"),
    [
        ("return Net()", "the model was in training mode"),
        ("return nn.Sequential(make(), nn.Softmax(1)).eval()", "outputs look like probabilities, not logits"),
        ("return nn.Sequential(make(), nn.Dropout(0.5).train())", "the model was in training mode"),
        ("return nn.Sequential(make(), Noise()).eval()", "the model draws noise?"),
        ("return nn.Sequential(make(), Batch()).eval()", "alone and in a batch"),
        ("return nn.Sequential(make(), Quantised()).eval()", "no gradient reaches the input"),
    ],
)
def test_doubtful_models_are_flagged_and_evaluated(
    written: Callable[..., str], dataset: Dataset, body: str, flag: str
) -> None:
    more = f"""
class Noise(nn.Module):
    def forward(self, z):
        return z + 0.01 * torch.randn_like(z)

class Batch(nn.Module):
    def forward(self, z):
        return z - z.mean(0)

class Quantised(nn.Module):
    def forward(self, z):
        return z.detach().mul(8).round()

def doubtful():
    {body}
"""
    subject = from_factory(written(more, "doubtful"), None, dataset, CPU)
    (found,) = subject.flags
    assert flag in found


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_outputs_that_are_not_finite_are_refused(written: Callable[..., str], dataset: Dataset, value: str) -> None:
    more = f"def sick():\n    net = make(); net.linear.bias.data.fill_(float('{value}')); return net\n"
    with pytest.raises(InputError) as caught:
        from_factory(written(more, "sick"), None, dataset, CPU)
    sentence = "The model's outputs are not finite (NaN or infinite) on 100 % of 16 images."
    assert str(caught.value) == sentence


def test_model_that_expects_another_domain_is_flagged(written: Callable[..., str], toy: Any, tmp_path: Path) -> None:
    toy = toy(images=60)
    save_file({"linear.weight": toy.weight.T.contiguous(), "linear.bias": torch.zeros(4)}, tmp_path / "w.safetensors")
    pixels = written("def pixels():\n    net = make(); net.shift = 0.5; return net\n", "pixels", SHIFTED)
    assert from_factory(pixels, tmp_path / "w.safetensors", toy.dataset, CPU).flags == []
    (flag,) = from_factory(written(good=SHIFTED), tmp_path / "w.safetensors", toy.dataset, CPU).flags
    assert flag.startswith("the model expects inputs in [-1,1], not [0,1]: it is right on 96.7 % there and on ")


def test_data_without_test_images_are_refused(written: Callable[..., str], dataset: Dataset) -> None:
    empty = dataclasses.replace(dataset, test=dataset.test.select(slice(0, 0)))
    with pytest.raises(InputError, match="toy has no test images"):
        from_factory(written(), None, empty, CPU)


def test_model_can_be_made_without_being_tried(written: Callable[..., str], dataset: Dataset) -> None:
    spec = written("def sick(num_classes):\n    return nn.Sequential(Net(7), nn.Dropout())\n", "sick")
    model = make_model(spec, None, dataset, CPU)
    assert model.training
    assert model(torch.rand(2, 1, 6, 6)).shape == (2, 7)


@pytest.mark.parametrize(
    ("more", "factory", "sentence"),
    [
        ("", "mak", 'has no "mak". Did you mean "make"'),
        ("number = 3", "number", "no function that makes a model"),
        ("def wrong(): return 3", "wrong", "returned no torch.nn.Module, but an object of type int"),
        ("def wrong(): raise ValueError('two\\nlines')", "wrong", "ValueError: two lines"),
        ("def wrong(size): return Net()", "wrong", "failed to make a model: TypeError"),
        ("def wrong(): return Net(5)", "wrong", "outputs are [16, 5]; toy wants logits [16, 4]"),
        ("def wrong(): return nn.Linear(36, 4)", "wrong", "does not classify images [16, 1, 6, 6]: RuntimeError"),
        ("def wrong(): return nn.Identity()", "wrong", "outputs are [16, 1, 6, 6]"),
        ("class P(Net):\n  def forward(self, x): return x, x\nwrong = P", "wrong", "returns a tuple, not logits"),
        ("import does_not_exist", "make", "does not load: ModuleNotFoundError"),
        ("def (", "make", "does not load: SyntaxError"),
        ("raise SystemExit('bye')", "make", "does not load: SystemExit: bye"),
    ],
)
def test_wrong_factory_is_told_in_one_sentence(
    written: Callable[..., str], dataset: Dataset, more: str, factory: str, sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        from_factory(written(more, factory), None, dataset, CPU)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("nowhere.py:make", "There is no file nowhere.py"),
        ("nowhere.py", 'named "FILE.py:FACTORY"'),
        (":make", 'named "FILE.py:FACTORY"'),
        ("no_such_package.module:make", "does not import: ModuleNotFoundError"),
    ],
)
def test_missing_factory_is_told_in_one_sentence(dataset: Dataset, spec: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        from_factory(spec, None, dataset, CPU)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_from_elsewhere_are_loaded(
    written: Callable[..., str], dataset: Dataset, tmp_path: Path, suffix: str, wrap: Any, prefix: str
) -> None:
    state = {f"{prefix}linear.weight": torch.ones(4, 36), f"{prefix}linear.bias": torch.zeros(4)}
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(wrap(state), path)
    else:
        save_file(state, path)
    subject = from_factory(written(), path, dataset, CPU)
    assert float(subject.model.state_dict()["linear.weight"].sum()) == 4 * 36
    assert subject.digest != from_factory(written(), None, dataset, CPU).digest


class Surprise:
    """What a pickle from elsewhere may hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("save", "sentence"),
    [
        (lambda path: None, "There is no weights file"),
        (lambda path: path.write_bytes(b""), "truncated or no weights file"),
        (lambda path: path.write_bytes(b"not weights at all"), "no weights file"),
        (lambda path: torch.save({"linear.weight": torch.ones(4, 36)}, path), 'lack "linear.bias"'),
        (
            lambda path: torch.save(
                {"linear.weight": torch.ones(4, 36), "linear.bias": torch.ones(4), "extra": torch.ones(1)}, path
            ),
            'have the unexpected "extra"',
        ),
        (lambda path: torch.save({"linear.weight": torch.ones(5, 36)}, path), "do not fit the model"),
        (lambda path: torch.save([torch.ones(1)], path), "no state dict"),
        (lambda path: torch.save({"epoch": 3}, path), "no state dict"),
        (lambda path: torch.save(Surprise(), path), "holds more than tensors (builtins.print), and is not unpickled."),
        (
            lambda path: path.write_text("<!DOCTYPE html><html></html>"),
            "weights.pt is an HTML page and no weights file",
        ),
        (
            lambda path: torch.save({"model_state_dict": {}, "replay_buffer": torch.zeros(2, 3)}, path),
            'it holds "model_state_dict" (0 tensors) and "replay_buffer" (a tensor [2, 3]).',
        ),
    ],
)
def test_wrong_weights_are_told_in_one_sentence(
    written: Callable[..., str],
    dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    save: Callable[[Path], object],
    sentence: str,
) -> None:
    path = tmp_path / "weights.pt"
    save(path)
    with pytest.raises(InputError) as caught:
        from_factory(written(), path, dataset, CPU)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_truncated_weights_are_told_in_one_sentence(
    written: Callable[..., str], dataset: Dataset, tmp_path: Path
) -> None:
    state = {"linear.weight": torch.ones(4, 36), "linear.bias": torch.zeros(4)}
    for path in (tmp_path / "weights.pt", tmp_path / "weights.safetensors"):
        save: Any = torch.save if path.suffix == ".pt" else save_file
        save(state, path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InputError, match="truncated"):
            from_factory(written(), path, dataset, CPU)


def test_making_and_trying_a_model_leaves_the_global_random_stream_alone(
    written: Callable[..., str], dataset: Dataset
) -> None:
    spec = written("def noisy():\n    return nn.Sequential(make(), nn.Dropout(0.5))\n", "noisy")
    before = torch.random.get_rng_state()
    from_factory(spec, None, dataset, CPU)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_digests_tell_weights_and_code_apart(written: Callable[..., str], dataset: Dataset) -> None:
    first = from_factory(written(), None, dataset, CPU)
    same = from_factory(written(), None, dataset, CPU)
    edited = from_factory(written(good=GOOD.replace("x.flatten(1)", "2 * x.flatten(1)")), None, dataset, CPU)
    assert (first.digest, first.code) == (same.digest, same.code)
    assert edited.digest == first.digest
    assert edited.code != first.code


def test_metadata_are_plain_data(written: Callable[..., str], dataset: Dataset) -> None:
    assert json.dumps(from_factory(written(), None, dataset, CPU).metadata)
