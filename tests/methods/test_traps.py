"""Where the traps of adversarial-training.md, section 5, are tested; here, those of every adversarial training.

 1  an attack leaves all as it found it            here; test_contract: test_inner_leaves_no_trace, test_three_steps_...
 2  eps is in [0, 1] units                         here; test_contract: test_inner_leaves_no_trace
 3  without room the loss is the clean one         test_contract: test_without_room_...; the tests of each method
 4  order of KL's arguments                        primitives/test_losses: test_kl_argument_order_...
 5  cached clean prediction of TRADES              here; test_golden: test_trades, whose numbers are of uncached ones
 6  AWP's restoration and the lengths of v         primitives/test_weight_perturbation, test_awp
 7  AWP's v and the proxy's rate                   test_golden: AWP's step
 8  average of the weights                         training/test_trainer: test_moving_average_..., training/test_optim
 9  MART in float32, k not y                       primitives/test_losses, test_mart
10  LBGAT's mean over B K, gradient of the teacher test_lbgat, test_golden
11  LAS's images stop after their own steps        primitives/test_per_sample_attack: test_an_image_stops_...
12  TDAT's carried perturbation                    test_tdat: test_a_start_is_..., test_a_smaller_batch_...
13  AGR's edit                                     test_agr, primitives/test_gradient_surgery
14  mixed batches                                  data/test_streams: test_a_share_of_every_batch_..., data/test_arrays
15  what decays                                    training/test_optim: test_normalisation_can_be_spared_...
16  values of the schedules                        training/test_optim: test_step_schedule_of_rice, test_one_cycle_...
17  selection never sees the test set              here
18  what AutoAttack is given                       here; benchmark/test_subject; AutoAttack's own checks become flags
19  numbers are numbers                            training/test_config: test_fractions_and_exponents_are_numbers
20  a step repeats itself                          test_contract: test_a_step_repeats_itself
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from methods import get, names
from methods.backbones import Classifier
from methods.data import Dataset
from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import trades_attack
from methods.primitives.losses import kl_divergence
from methods.primitives.modes import frozen
from methods.primitives.threat import ThreatModel
from methods.training.config import Experiment
from methods.training.method import Batch, Method
from methods.training.trainer import train

MakeMethod = Callable[..., Method]
Network = Callable[..., Classifier]

ADVERSARIAL = [name for name in names() if get(name).card.family == "adversarial training"]
WIDER = {"las_at": 15 / 8}
"""Whose adversary may go beyond eps, as in the code, and by how much."""


def test_an_attack_moves_statistics_only_in_train_mode(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """Trap 1."""
    wrong: list[str] = []
    for name in ADVERSARIAL:
        method, model = make_method(name), network()
        modules = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        flags = [(module.training, module.track_running_stats) for module in modules]
        before = [value.clone() for value in model.buffers()]
        method.inner(model, batch)
        if [(module.training, module.track_running_stats) for module in modules] != flags:
            wrong.append(f"{name} changes flags")
        moved = not all(torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))
        if moved != (getattr(method.config, "attack_mode", "eval") == "train"):
            wrong.append(f"{name} {'moves' if moved else 'does not move'} the statistics")
    assert wrong == []


def test_eps_is_in_units_of_images_whatever_the_network_sees(
    make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """Trap 2."""
    wrong: list[str] = []
    for name, normalize in itertools.product(ADVERSARIAL, ("none", "half")):
        inner = make_method(name, threat="Linf:8/255").inner(network(normalize=normalize), batch)
        x_adv, radius = inner["x_adv"], 8 / 255 * WIDER.get(name, 1)
        farthest = (x_adv - inner.get("x", batch.x)).abs().max()
        if not 0.9 * 8 / 255 < farthest <= radius + 1e-6:
            wrong.append(f"{name}, normalize {normalize}: {255 * farthest:.3f}/255 from the clean images")
        if not (x_adv.min() >= 0 and x_adv.max() <= 1):
            wrong.append(f"{name}, normalize {normalize}: leaves [0, 1]")
    assert wrong == []


def test_a_clean_prediction_made_once_is_that_of_every_step(trained: Classifier, batch: Batch) -> None:
    """Trap 5."""
    threat, attack = ThreatModel.parse("Linf:0.15"), PGD(steps=10, step_size=0.25, start="normal")
    once = trades_attack(attack, trained, batch.x, threat, batch.generator("attack"))

    def uncached(x: Tensor) -> Tensor:
        return kl_divergence(trained(batch.x), trained(x))

    with frozen(trained):
        every_step = attack(uncached, batch.x, threat, batch.generator("attack"))
    assert torch.equal(once, every_step)


def test_the_test_images_change_nothing_in_a_training(
    make_experiment: Callable[..., Experiment], digits: Dataset, tmp_path: Path
) -> None:
    """Trap 17: with test images that would choose another epoch, the same one is chosen, and the same weights."""
    experiment = make_experiment("pgd_at", {"attack": {"steps": 1, "step_size": 1.0}}, epochs=3)
    wrong = replace(digits.test, labels=(digits.test.labels + 1) % digits.num_classes)
    folders = [
        train(experiment, replace(digits, test=test), tmp_path / str(at), torch.device("cpu"))
        for at, test in enumerate((digits.test, wrong))
    ]
    for file in ("best.safetensors", "weights.safetensors"):
        first, second = (load_file(folder / file) for folder in folders)
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_network_gives_float32_logits_without_noise(network: Network, batch: Batch) -> None:
    """Trap 18: not probabilities, the same bits twice, and no gradient taken on the way."""
    model = network().eval()
    first, second = model(batch.x), model(batch.x)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert not torch.allclose(first.sum(1), torch.ones(16))
    with torch.inference_mode():
        model(batch.x)
