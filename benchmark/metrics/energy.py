"""Energies of clean images against the same images under PGD-20.

The gap is **clean minus adversarial**, E(x) - E(x_adv), with low energy = likely: a negative joint gap says
that the attack made the true class less likely, which is what it is for; for the marginal energy either sign
occurs. Joint energy E(x, y) = -f(x)[y] takes the true label.

Table 1 of EB-JDAT (arXiv 2505.19459v1) has a mean and a variance of one-to-one energy differences under
PGD-20 and states neither which energy, nor the sign, nor absolute values; its positive means (10.18 for
standard training, 1.46 for PGD-AT) fit the joint energy with true labels, adversarial minus clean or in
absolute value. No code was released. So both energies, signed and absolute, are kept here. Logit scales
differ between models: the gap is also given in units of the standard deviation of the clean energy.
"""

import numpy as np

from benchmark.evaluation.shards import Shards
from benchmark.metrics import pgd
from benchmark.results.entry import Measurement, Value
from benchmark.results.store import NOTE
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict

VERSION = 1
NEEDS = ("pgd20",)


class Config(Strict):
    """Nothing to set: the attack is the protocol's pgd20."""


COLUMNS = {
    "energy_gap_mean": Column(
        "energy_gap_mean", "mean over images of E(x,y) - E(x_adv,y), clean minus PGD-20, true labels", 3
    ),
    "energy_gap_std": Column("energy_gap_std", "standard deviation over images of the same difference", 3),
}


def measure(data: Shards) -> Measurement:
    """Measure mean, standard deviation (n - 1) and mean size of the gaps of joint and marginal energy.

    ``energy_*`` is the joint energy with true labels. ``*_gap_scaled`` is the mean gap over the standard
    deviation of the clean energy. Deviations of a single image, and what is divided by a deviation of 0, are
    None. Per image: the four energies.
    """
    arrays = data.of(pgd.NAME).map(pgd.attack_shard(data))
    kept = {name: array for name, array in arrays.items() if "energy" in name or name.startswith(NOTE)}
    values: dict[str, Value] = {}
    for name, kind in (("energy", "joint_energy"), ("marginal_energy", "marginal_energy")):
        clean = arrays[kind].astype(np.float64)
        gap = clean - arrays[f"{kind}_adv"].astype(np.float64)
        spread = float(clean.std(ddof=1)) if data.n > 1 else None
        values |= {
            f"{name}_clean_mean": float(clean.mean()),
            f"{name}_clean_std": spread,
            f"{name}_gap_mean": float(gap.mean()),
            f"{name}_gap_std": float(gap.std(ddof=1)) if data.n > 1 else None,
            f"{name}_gap_abs_mean": float(np.abs(gap).mean()),
            f"{name}_gap_scaled": float(gap.mean()) / spread if spread else None,
        }
    return data.finish(kept, values)
