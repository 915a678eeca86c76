"""FID, Inception Score and KID by torch-fidelity, each with a passport that says how the number came about.

The same images get FIDs that differ by points, and by orders of magnitude where a library misreads them. Values are
comparable where extractor, counts, reference, rounding and resize are the same, so all of them are kept.

FID is the squared Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500), the
Inception Score exp E KL(p(y|x) | p(y)) (Salimans et al. 2016, arXiv 1606.03498), KID the unbiased squared MMD with a
cubic kernel (Binkowski et al. 2018, arXiv 1801.01401). Extractors are torch-fidelity's: its Inception-v3, and this
project's reference networks (:mod:`benchmark.models.reference`), registered with it. Its cache, whose keys are names,
is not used: features of the reference images are kept in the store, by the images' digest.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from benchmark.evaluation.bundle import file_digest
from benchmark.evaluation.parts import Part, PartDone
from benchmark.models import reference as networks
from benchmark.results.entry import Value
from benchmark.results.store import Arrays, Store
from methods.backbones.wide_resnet import WideResNet
from methods.data import Dataset
from methods.data.images import unit
from methods.errors import InputError
from methods.training.checkpoint import load_checkpoint
from methods.training.pictures import rounded

LIBRARY = f"torch-fidelity {version('torch-fidelity')}"
INCEPTION = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the weights of the one Inception-v3 whose distances are called FID."""
PLACE = "BENCHMARK_INCEPTION"
"""Environment variable that names the file of its weights."""
FEWEST = 2048
"""Images below which values are biased so much that they compare with nothing."""
_NAMES = (URL_INCEPTION_V3.rpartition("/")[2], "pt_inception-2015-12-05-6726825d.pth")
"""File names of these weights in torch-fidelity and in pytorch-fid; both files hold the same bytes."""
_NETWORK = "trilemma-reference"
_ROUNDING = "to the nearest of 256 levels"
_SPLITS, _SUBSETS, _SUBSET, _SEED = 10, 100, 1000, 2020
"""Splits of the Inception Score, number and size of KID's subsets, and their seed: torch-fidelity's and the field's."""
_PIECE = 1000
"""Number of reference images whose features are stored together."""

Split = Literal["train", "test"]


class _Network(FeatureExtractorBase):
    """Reference network in torch-fidelity's form: images uint8 [B,C,H,W] to penultimate features and logits."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: object) -> None:
        super().__init__(name, features_list)
        self.model = load_checkpoint(Path(feature_extractor_weights_path)).model

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "penultimate", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "penultimate"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        features = networks.penultimate(self.model, unit(input))
        found = {"penultimate": features, "logits": cast(WideResNet, self.model.network).head(features)}
        return tuple(found[name] for name in self.features_list)


register_feature_extractor(_NETWORK, _Network)


@dataclass(frozen=True)
class Extractor:
    """Network that turns images into the features that are compared."""

    name: str
    digest: str
    """SHA-256 of the network's weights file."""
    resize: str
    rgb: bool
    """Whether the network takes three channels; images with one channel have it repeated."""
    device: torch.device
    module: FeatureExtractorBase

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 100) -> Arrays:
        """Return ``features`` [N,D] and ``logits`` [N,K], float32, of images as :func:`levels` takes them."""
        found = []
        for batch in levels(images).split(batch_size):
            wanted = batch.expand(-1, 3, -1, -1) if self.rgb else batch
            found.append([layer.cpu() for layer in self.module(wanted.to(self.device))])
        features, logits = (torch.cat(layer).numpy() for layer in zip(*found, strict=True))
        return {"features": features, "logits": logits}


@dataclass(frozen=True)
class Reference:
    """Real images with which generated ones are compared."""

    split: Split
    images: Tensor
    """Images uint8 [N,C,H,W]."""
    digest: str
    """SHA-256 of the images' own SHA-256, in ascending order."""


@dataclass(frozen=True)
class Fidelity:
    """Distances between generated and real images."""

    fid: float
    inception_score: float | None
    """Inception Score; None where it is not finite."""
    inception_score_std: float | None
    """Standard deviation of the Inception Score over the splits."""
    kid: float
    kid_std: float
    """Standard deviation of KID over the subsets."""
    passport: dict[str, Value]
    flags: list[str]
    """Reasons to doubt the numbers."""


def levels(images: Tensor) -> Tensor:
    """Return images [N,C,H,W], uint8 or float in [0, 1] (else: InputError), as uint8, rounded like generated ones."""
    if images.dim() != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InputError(f"Images are uint8, or float in [0, 1], [N,C,H,W], not {images.dtype} {list(images.shape)}.")
    return images if images.dtype == torch.uint8 else rounded(images)


def inception(device: torch.device) -> Extractor:
    """Return FID's Inception-v3, 2,048 features and 1,008 logits without bias; errors of :func:`inception_weights`."""
    return _extractor("inception-v3-compat", inception_weights(), "bilinear to 299x299, as TensorFlow 1", True, device)


def reference_network(dataset_name: str, device: torch.device) -> Extractor:
    """Return the reference network of a data set as an extractor; raise InputError where it has none."""
    return _extractor(_NETWORK, networks.weights(dataset_name), "none", False, device)


def _extractor(name: str, path: Path, resize: str, rgb: bool, device: torch.device) -> Extractor:
    layer = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric
    module = create_feature_extractor(
        name, [layer("fid"), layer("isc")], cuda=False, feature_extractor_weights_path=str(path), verbose=False
    )
    return Extractor(name, file_digest(path), resize, rgb, device, module.to(device))


def inception_weights() -> Path:
    """Return the file of Inception's weights: the one ``$BENCHMARK_INCEPTION`` names, or in torch.hub's checkpoints.

    Without either it is downloaded. It is unpickled by torch-fidelity, hence the check. InputError: it cannot be had,
    or its SHA-256 is not :data:`INCEPTION`.
    """
    named, folder = os.environ.get(PLACE), Path(torch.hub.get_dir()) / "checkpoints"
    places = [Path(named)] if named else [folder / name for name in _NAMES]
    path = next((place for place in places if place.is_file()), places[0])
    if not path.is_file():
        try:
            if named:
                raise FileNotFoundError(f"${PLACE} names a file that is not there")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), INCEPTION, progress=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"FID needs {_NAMES[0]} of torch-fidelity's release page, which cannot be had ({error}): place it at "
                f"{path}, or name another place in ${PLACE}."
            ) from error
    if file_digest(path) != INCEPTION:
        raise InputError(f"{path} is truncated or holds other weights than FID's: its SHA-256 is not {INCEPTION}.")
    return path


def reference_images(dataset: Dataset, split: Split) -> Reference:
    """Return a split of the data set as published: "train" includes the validation images that were taken out of it.

    The images are ordered by their own SHA-256, so that the size of the validation split changes nothing.
    """
    parts = [dataset.test] if split == "test" else [dataset.train, dataset.validation]
    images = torch.cat([levels(part.images).cpu() for part in parts])
    digests = [hashlib.sha256(row).digest() for row in images.flatten(1).numpy()]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    digest = hashlib.sha256(b"".join(digests[index] for index in order)).hexdigest()
    return Reference(split, images[order], digest)


def reference_features(
    extractor: Extractor, reference: Reference, store: Store, batch_size: int, part: Part | None = None
) -> Arrays:
    """Return the features and logits of the reference images, computed once per store, in pieces.

    Raises:
        PartDone: there is a ``part``: only its pieces were computed, and are left in the store.
        SaveError: they cannot be stored.
    """
    names = {"extractor": extractor.digest, "images": reference.digest, "library": LIBRARY}
    identity = {"metric": "features", **names}
    pieces: list[Arrays] = []
    for index, images in enumerate(reference.images.split(_PIECE)):
        if part is not None and index not in part:
            continue
        piece = store.load_shard(identity, index, len(images))
        if piece is None:
            piece = extractor(images, batch_size)
            store.save_shard(identity, index, len(images), piece)
        pieces.append(piece)
    if part is not None:
        raise PartDone
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def compare(extractor: Extractor, generated: Arrays, reference: Reference, real: Arrays) -> Fidelity:
    """Compare features and logits of generated images with those of the reference images, at least two of either."""
    distance = frechet(generated, real)
    score, score_std, splits = _inception_score(torch.from_numpy(generated["logits"]))
    size = min(_SUBSET, len(generated["features"]), len(real["features"]))
    features = (torch.from_numpy(kind["features"]) for kind in (generated, real))
    kid = kid_features_to_metric(*features, kid_subsets=_SUBSETS, kid_subset_size=size, rng_seed=_SEED, verbose=False)
    flags = doubts(generated, real)
    if splits < _SPLITS:
        flags.append(f"The Inception Score is over 1 split: {len(generated['logits'])} images are no {_SPLITS}.")
    if score is None:
        flags.append("The Inception Score is not finite.")
    own: dict[str, Value] = {
        "inception_score_splits": splits,
        "inception_score_shuffle_seed": _SEED,
        "kid_subsets": _SUBSETS,
        "kid_subset_size": size,
    }
    means = kid[KEY_METRIC_KID_MEAN], kid[KEY_METRIC_KID_STD]
    return Fidelity(distance, score, score_std, *means, passport(extractor, generated, reference) | own, flags)


def frechet(generated: Arrays, real: Arrays) -> float:
    """Return the squared Frechet distance of two sets of features; raise InputError below two images of either kind."""
    fewest = min(len(generated["features"]), len(real["features"]))
    if fewest < 2:
        raise InputError(f"A Frechet distance needs at least 2 images of either kind, not {fewest}.")
    statistics = (fid_features_to_statistics(torch.from_numpy(kind["features"])) for kind in (generated, real))
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def _inception_score(logits: Tensor) -> tuple[float | None, float | None, int]:
    """Return score, standard deviation and number of splits, which is 1 where there are fewer images than splits."""
    splits = _SPLITS if len(logits) >= _SPLITS else 1
    found = isc_features_to_metric(logits, splits, True, _SEED)
    score, std = found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]
    return (score, std, splits) if math.isfinite(score) else (None, None, splits)


def passport(extractor: Extractor, generated: Arrays, reference: Reference) -> dict[str, Value]:
    """Return the settings that a distance depends on, besides the generated images themselves."""
    return {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "images_generated": len(generated["features"]),
        "images_reference": len(reference.images),
        "reference": reference.split,
        "reference_digest": reference.digest,
        "rounding": _ROUNDING,
        "resize": extractor.resize,
        "library": LIBRARY,
    }


def doubts(generated: Arrays, real: Arrays) -> list[str]:
    """Return reasons to doubt a distance: too few images, by the field's measure or for the features' covariance."""
    flags = []
    for kind, found in (("generated", generated), ("reference", real)):
        n, dimension = found["features"].shape
        if n < FEWEST:
            flags.append(f"Only {n} {kind} images: below {FEWEST} distances are biased upwards, the more the fewer.")
        if n <= dimension:
            flags.append(f"{n} {kind} images for {dimension} features: their covariance is singular.")
    return flags
