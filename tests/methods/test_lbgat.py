"""LBGAT: its loss, who learns from it, and where its teacher begins."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.backbones import Classifier
from methods.errors import InputError
from methods.training.checkpoint import save_weights
from methods.training.method import Batch, Method
from methods.training.optim import Updater

MakeMethod = Callable[..., Method]
Network = Callable[..., Classifier]


@pytest.fixture
def x_adv(batch: Batch) -> Tensor:
    return (batch.x + 0.15 * torch.sin(torch.arange(batch.x.numel()).view_as(batch.x))).clamp(0, 1)


def teacher_of(method: Method) -> Classifier:
    teacher = method.teacher
    assert isinstance(teacher, Classifier)
    return teacher


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_the_loss_is_the_formula(
    beta: float, make_method: MakeMethod, network: Network, batch: Batch, x_adv: Tensor
) -> None:
    """adversarial-training.md, trap 10: the square is averaged over images and classes."""
    method, model = make_method("lbgat", {"beta": beta}), network()
    losses = method.loss(model, batch, {"x_adv": x_adv})
    clean, adversarial, guide = model(batch.x), model(x_adv), teacher_of(method)(batch.x)
    p, q = clean.softmax(1), adversarial.softmax(1)
    expected = (
        (adversarial - guide).pow(2).sum() / (16 * 10)
        - guide.log_softmax(1)[range(16), batch.y].mean()
        + beta * (p * (p / q).log()).sum() / 16
    )
    torch.testing.assert_close(losses.total, expected)


def test_both_networks_learn_from_the_square(
    make_method: MakeMethod, network: Network, batch: Batch, x_adv: Tensor
) -> None:
    """adversarial-training.md, trap 10: its gradient reaches the teacher, and the opposite one its logits' pair."""
    method, model = make_method("lbgat"), network()
    boundary = method.loss(model, batch, {"x_adv": x_adv}).terms["boundary"]
    for weights in (teacher_of(method).parameters(), model.parameters()):
        gradients = torch.autograd.grad(boundary, list(weights), retain_graph=True)
        assert all(gradient.norm() > 0 for gradient in gradients)


def test_the_student_meets_no_label(make_method: MakeMethod, network: Network, batch: Batch, x_adv: Tensor) -> None:
    method, model = make_method("lbgat", {"beta": 6.0}), network()
    other = Batch(batch.x, (batch.y + 1) % 10, None, 0, 0, 0.0)
    gradients = [
        torch.autograd.grad(method.loss(model, images, {"x_adv": x_adv}).total, list(model.parameters()))
        for images in (batch, other)
    ]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_statistics_end_with_the_clean_images(
    make_method: MakeMethod, network: Network, batch: Batch, x_adv: Tensor
) -> None:
    """Adversarial, then clean, at beta 0 as well."""
    model, twin = network(), network()
    make_method("lbgat").loss(model, batch, {"x_adv": x_adv})
    for images in (x_adv, batch.x):
        twin(images)
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), twin.buffers(), strict=True))


def test_the_teacher_is_in_train_mode_and_one_optimiser_moves_both(
    make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    method, model = make_method("lbgat"), network()
    teacher = teacher_of(method)
    teacher.eval()
    trained = [parameter for parameter in (*model.parameters(), *method.parameters()) if parameter.requires_grad]
    assert len(trained) == len(list(model.parameters())) + len(list(teacher.parameters()))
    before = [parameter.detach().clone() for parameter in trained]
    modes: list[bool] = []
    teacher.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    method.step(model, batch, Updater(torch.optim.SGD(trained, 0.1), None))
    assert modes == [True]
    assert not any(torch.equal(*pair) for pair in zip(trained, before, strict=True))


def test_the_teacher_is_passed_once_forward_and_once_backward(
    make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    method, model = make_method("lbgat", {"beta": 6.0}), network()
    passes: list[str] = []

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        passes.append("forward")
        output.register_hook(lambda gradient: passes.append("backward"))

    teacher_of(method).network.register_forward_hook(after)
    method.step(model, batch, Updater(torch.optim.SGD(model.parameters(), 0.1), None))
    assert passes == ["forward", "backward"]


def saved(path: Path, model: Classifier, depth: int = 10) -> str:
    config = {"depth": depth, "widen": 1, "normalize": "none"}
    description = {"backbone": config, "num_classes": 10, "image_shape": [1, 8, 8], "mean": [0.0], "std": [1.0]}
    save_weights(path, model.state_dict(), description)
    return str(path)


def test_the_teacher_may_begin_at_a_checkpoint(tmp_path: Path, make_method: MakeMethod, network: Network) -> None:
    model = network(normalize="none")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    path = saved(tmp_path / "teacher.safetensors", model)
    method = make_method("lbgat", {"teacher_checkpoint": path})
    method.check(model)
    for name, value in teacher_of(method).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_a_missing_or_foreign_checkpoint_is_refused(tmp_path: Path, make_method: MakeMethod, network: Network) -> None:
    with pytest.raises(InputError, match=r"There is no checkpoint at .*nowhere\.") as refused:
        make_method("lbgat", {"teacher_checkpoint": str(tmp_path / "nowhere")})
    assert "\n" not in str(refused.value)
    path = saved(tmp_path / "teacher.safetensors", network(normalize="none", depth=16), depth=16)
    with pytest.raises(InputError, match=r"not the one that options\.teacher describes"):
        make_method("lbgat", {"teacher_checkpoint": path})


def test_without_room_for_the_adversary_the_student_imitates(
    make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """adversarial-training.md, trap 3, in eval mode, where the two passes are one."""
    method, model = make_method("lbgat", {"beta": 6.0}, threat="Linf:0"), network().eval()
    inner = method.inner(model, batch)
    assert torch.equal(inner["x_adv"], batch.x)
    terms = method.loss(model, batch, inner).terms
    assert terms["robust"].abs() < 1e-6
    torch.testing.assert_close(terms["boundary"], (model(batch.x) - teacher_of(method)(batch.x)).square().mean())


@pytest.mark.parametrize(
    ("options", "named"), [({"beta": -1.0}, "options.beta"), ({"teacher": {"normalize": "dataset"}}, "options.teacher")]
)
def test_bad_options_are_refused(options: dict[str, Any], named: str, make_method: MakeMethod) -> None:
    with pytest.raises(InputError, match=named):
        make_method("lbgat", options)


def test_defaults_are_the_script(make_method: MakeMethod) -> None:
    config = asdict(type(make_method("lbgat")).Config())
    assert (config["beta"], config["attack"]["steps"], config["teacher"]["architecture"]) == (0.0, 10, "resnet-highres")
