"""The energy landscape: how the energies of clean, adversarial and generated images lie to each other.

For each test image (x, y) there are the image itself, x_adv of PGD-20, and the image that the metric ``generation``
made for its class, from one start (:attr:`Config.source`). Each has a joint energy E(x, y) = -f(x)[y] (true label;
wanted class of the generated one) and a marginal energy E(x) = -logsumexp f(x). Figure 1 of EB-JDAT (arXiv
2505.19459v1) shows histograms of the joint one; :mod:`benchmark.metrics.energy` says what its Table 1 leaves open.

All energies are those of the class logits in eval mode, so that the three distributions are comparable. Clean and
adversarial ones are read from the outcomes of ``pgd20``, where x_adv is as it was attacked, not rounded; the generated
images are the kept ones, rounded to uint8. ``generation``'s own energies are in the mode of its chains, which for
JEM++, SADAJEM and M-EBM is train mode, and are not these. A scalar head (M-EBM, M-JEM) has a density -h(x) of its own,
which the class logits know nothing about: a flag says so.

The *overlap* of densities p and q is the integral of min(p, q) (Weitzman 1970): 1 if they are equal, 0 if they are
disjoint; for three, of the least. It is taken from histograms with common equal bins over the pooled range, in which
far-out values (Tukey 1977: beyond 3 interquartile ranges from the quartiles) count in the end bins. Noise lowers
it: ``overlap_equal`` is what two samples of these sizes from one distribution would show. AUROC and the
Kolmogorov-Smirnov distance need no bins and do not depend on the scale of the energy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from benchmark.evaluation.shards import Shard, Shards
from benchmark.metrics import generation, pgd
from benchmark.results.entry import Measurement, Value
from benchmark.results.store import NOTE, Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.data.images import unit
from methods.primitives.energy import joint_energy, marginal_energy

NAME = "landscape"
VERSION = 1
NEEDS = (pgd.NAME, generation.NAME)
_ENDINGS = {"clean": "", "adversarial": "_adv", "generated": "_generated"}
"""Endings of the names of the arrays that hold the energies of each kind of image."""
_FAR_OUT = 3
"""Interquartile ranges."""


class Config(Strict):
    """Which generated images, and how fine the histograms."""

    source: generation.Source = "class_gaussian"
    bins: Annotated[int, Field(ge=2, le=200)] = 40


COLUMNS = {
    "energy_overlap": Column(
        "energy_overlap", "overlap of the distributions of E(x,y) and E(x_adv,y), PGD-20; 0 = disjoint, 1 = equal"
    )
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what decides which images were generated."""
    return generation.conditions(data)


def measure(data: Shards) -> Measurement:
    """Measure gaps, and overlaps and distances of the distributions.

    Values, ``energy_*`` of the joint and ``marginal_energy_*`` of the marginal energy: of each distribution ``_mean``
    and ``_std`` (n - 1); of the one-to-one gap clean minus adversarial ``_gap_mean``, ``_gap_variance`` (n - 1),
    ``_gap_abs_mean``, and ``_gap_scaled`` and ``_gap_abs_scaled``, the two means in standard deviations of the clean
    energy; ``_overlap`` (clean, adversarial), ``_overlap_clean_generated``, ``_overlap_adversarial_generated``,
    ``_overlap_all`` and ``_overlap_equal``; ``_auroc_*``, the chance that an adversarial (a generated) image has a
    higher energy than a clean one, ties half; ``_ks_*``, the largest distance of the distribution functions from the
    clean one. Energies that are not finite are left out, and counted in a flag; what nothing is left for is None.

    Series: ``edges`` and the shares of ``clean``, ``adversarial`` and ``generated`` images in percent a bin, joint
    energy; with ``marginal_`` before them, marginal energy. Per image: all six energies.

    Raises:
        InputError: the metric ``generation`` has no images from that source.
    """
    config = data.config
    made = generation.images(data, config.source)
    attacked = data.of(pgd.NAME).map(pgd.attack_shard(data))
    forwarded = data.map(_Forward(data, made))
    arrays = {name: array for name, array in attacked.items() if "energy" in name} | forwarded
    sizes = [found[f"{NOTE}batch_size"] for found in (attacked, forwarded)]
    values: dict[str, Value] = {"source": config.source, "bins": config.bins, "mode": "eval"}
    series: dict[str, list[float | None]] = {}
    flags = made.flags + _doubts(generation.conditions(data))
    for kind, name, prefix in (("joint_energy", "energy", ""), ("marginal_energy", "marginal_energy", "marginal_")):
        found = {image: arrays[kind + end].astype(np.float64) for image, end in _ENDINGS.items()}
        for image, energies in found.items():
            if lost := int((~np.isfinite(energies)).sum()):
                flags.append(f"{name}: {lost} of {len(energies)} {image} images are left out: not finite.")
        measured = _gaps(found["clean"], found["adversarial"])
        finite = {image: energies[np.isfinite(energies)] for image, energies in found.items()}
        measured |= _distributions(finite, config.bins)
        values |= {f"{name}_{key}": value for key, value in measured.items()}
        series |= {prefix + key: numbers for key, numbers in _histograms(finite, config.bins).items()}
    return data.finish(arrays | {f"{NOTE}batch_size": np.concatenate(sizes)}, values, flags, series=series)


@dataclass(frozen=True)
class _Forward:
    """Takes the energies of the generated images of one shard."""

    data: Shards
    made: generation.Images

    @torch.no_grad()
    def __call__(self, shard: Shard) -> Arrays:
        data, made = self.data, self.made
        x = unit(made(shard).to(shard.x.device))
        # Not Subject.logits, which refuses a whole batch for one logit that is not finite.
        logits = torch.cat([data.subject.model(batch) for batch in x.split(data.batch_size)]).float()
        # The buffer's chains have no label: their class is the model's own, as in the metric that keeps them.
        wanted = logits.argmax(1) if made.source == generation.BUFFER else shard.y
        energies = {
            "joint_energy_generated": joint_energy(logits, wanted),
            "marginal_energy_generated": marginal_energy(logits),
        }
        return {name: np.where(self._ended(shard), found.cpu().numpy(), np.nan) for name, found in energies.items()}

    def _ended(self, shard: Shard) -> np.ndarray:
        """Tell which chains stayed finite: the others end as a grey image, which is no sample."""
        stored = self.made.data.store.load_shard(self.made.identity, shard.index, len(shard.y)) or {}
        return np.isfinite(stored[f"energy_{self.made.source}"])


def _doubts(made: Mapping[str, Any]) -> list[str]:
    doubts = []
    if made["mode"] == "train":
        doubts.append("The chains ran with batch statistics; their images' energies here are in eval mode.")
    if made["energy"] == "scalar":
        doubts.append("The checkpoint's density is a scalar head; the energies here are those of its class logits.")
    return doubts


def _gaps(clean: np.ndarray, adversarial: np.ndarray) -> dict[str, Value]:
    both = np.isfinite(clean) & np.isfinite(adversarial)
    gap, spread = (clean - adversarial)[both], _deviation(clean[both])
    mean, size = _mean(gap), _mean(np.abs(gap))
    return {
        "gap_mean": mean,
        "gap_variance": None if (deviation := _deviation(gap)) is None else deviation**2,
        "gap_abs_mean": size,
        "gap_scaled": mean / spread if mean is not None and spread else None,
        "gap_abs_scaled": size / spread if size is not None and spread else None,
    }


def _distributions(finite: Mapping[str, np.ndarray], bins: int) -> dict[str, Value]:
    clean, adversarial, generated = finite.values()
    values: dict[str, Value] = {}
    for image, energies in finite.items():
        values |= {f"{image}_mean": _mean(energies), f"{image}_std": _deviation(energies)}
    values |= {
        "overlap": overlap(bins, clean, adversarial),
        "overlap_equal": equal_overlap(bins, clean, adversarial),
        "overlap_clean_generated": overlap(bins, clean, generated),
        "overlap_adversarial_generated": overlap(bins, adversarial, generated),
        "overlap_all": overlap(bins, clean, adversarial, generated),
    }
    for image, energies in (("adversarial", adversarial), ("generated", generated)):
        values |= {f"auroc_{image}": auroc(clean, energies), f"ks_{image}": kolmogorov_smirnov(clean, energies)}
    return values


def _histograms(finite: Mapping[str, np.ndarray], bins: int) -> dict[str, list[float | None]]:
    edges = common_edges(bins, *finite.values())
    if edges is None:
        return {}
    digits = 2 - int(np.floor(np.log10(edges[1] - edges[0])))
    found: dict[str, list[float | None]] = {"edges": edges.round(digits).tolist()}
    for image, energies in finite.items():
        found[image] = (100 * shares(energies, edges)).round(2).tolist() if len(energies) else [None] * bins
    return found


def common_edges(bins: int, *samples: np.ndarray) -> np.ndarray | None:
    """Return [bins + 1]: the edges of equal bins over the pooled range of samples [n], without far-out values.

    None where there is no value at all.
    """
    pooled = np.concatenate(samples)
    if not len(pooled):
        return None
    low, high = pooled.min(), pooled.max()
    lower, upper = np.quantile(pooled, (0.25, 0.75))
    if (reach := _FAR_OUT * (upper - lower)) > 0:
        low, high = max(low, lower - reach), min(high, upper + reach)
    return np.histogram_bin_edges(pooled, bins, (low, high))


def shares(sample: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the share of a sample [n], n at least 1, in each bin; what lies beyond the edges is in the end bins."""
    return np.histogram(sample.clip(edges[0], edges[-1]), edges)[0] / len(sample)


def overlap(bins: int, *samples: np.ndarray) -> float | None:
    """Return the overlap coefficient of the distributions of samples [n], in [0, 1]; None where one is empty."""
    edges = common_edges(bins, *samples)
    if edges is None or not all(map(len, samples)):
        return None
    return float(np.min([shares(sample, edges) for sample in samples], axis=0).sum())


def equal_overlap(bins: int, one: np.ndarray, other: np.ndarray) -> float | None:
    """Return the mean overlap of two independent samples of these sizes from their pooled distribution.

    The mean of |p - q| in a bin is that of a normal deviate: sqrt(2 / pi) sqrt(s (1 - s) (1/n + 1/m)), s the share.
    """
    edges = common_edges(bins, one, other)
    if edges is None or not len(one) or not len(other):
        return None
    pooled = shares(np.concatenate([one, other]), edges)
    variance = pooled * (1 - pooled) * (1 / len(one) + 1 / len(other))
    return float(1 - np.sqrt(2 / np.pi * variance).sum() / 2)


def auroc(clean: np.ndarray, other: np.ndarray) -> float | None:
    """Return the chance that an item of ``other`` exceeds one of ``clean``, ties half; None where one is empty."""
    if not len(clean) or not len(other):
        return None
    ordered = np.sort(clean)
    below = np.searchsorted(ordered, other, "left") + np.searchsorted(ordered, other, "right")
    return float(below.mean() / (2 * len(clean)))


def kolmogorov_smirnov(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return the largest distance of two empirical distribution functions; None where one is empty."""
    if not len(one) or not len(other):
        return None
    places = np.concatenate([one, other])
    reached = [np.searchsorted(np.sort(sample), places, "right") / len(sample) for sample in (one, other)]
    return float(np.abs(reached[0] - reached[1]).max())


def _mean(numbers: np.ndarray) -> float | None:
    return float(numbers.mean()) if len(numbers) else None


def _deviation(numbers: np.ndarray) -> float | None:
    return float(numbers.std(ddof=1)) if len(numbers) > 1 else None
