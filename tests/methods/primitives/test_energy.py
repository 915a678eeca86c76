import math

import torch

from methods.primitives.energy import joint_energy, marginal_energy

LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])


def test_marginal_energy() -> None:
    expected = torch.tensor([-math.log(math.e + math.e**2 + math.e**3), -math.log(3)])
    torch.testing.assert_close(marginal_energy(LOGITS), expected)


def test_joint_energy_is_the_negative_logit_of_the_label() -> None:
    torch.testing.assert_close(joint_energy(LOGITS, torch.tensor([2, 0])), torch.tensor([-3.0, 0.0]))


def test_the_two_differ_by_the_log_posterior() -> None:
    y = torch.tensor([1, 2])
    log_posterior = LOGITS.log_softmax(1)[torch.arange(2), y]
    torch.testing.assert_close(marginal_energy(LOGITS) - joint_energy(LOGITS, y), log_posterior)


def test_energies_are_float32_and_do_not_overflow() -> None:
    low = (LOGITS * 1e4).half()
    assert marginal_energy(low).dtype == joint_energy(low, torch.tensor([0, 0])).dtype == torch.float32
    assert marginal_energy(LOGITS * 1e30).isfinite().all()
