"""Bundles: an honest one verifies, and whatever is changed in it, in its entry or in its weights is found and named."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch.nn.functional import cross_entropy

from benchmark.evaluation import bundle, evidence
from benchmark.evaluation import verify as verifying
from benchmark.evaluation.runner import evaluate
from benchmark.evaluation.shards import percent
from benchmark.evaluation.verify import Verification
from benchmark.models.subject import from_checkpoint
from benchmark.results import layout
from benchmark.results.entry import DataInfo, Entry, ProtocolInfo, SubjectInfo, pack, read_entry
from benchmark.results.layout import write_entry
from benchmark.results.store import Arrays, Store
from benchmark.specs import registry
from benchmark.specs.protocol import Protocol
from methods.backbones import BackboneConfig, build
from methods.data import Dataset, load
from methods.errors import InputError
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import load_checkpoint, save_weights

CPU = torch.device("cpu")
N = 40


@dataclass(frozen=True)
class Made:
    """A measured checkpoint, its entry, and what was written of both."""

    root: Path
    entry: Entry
    """As it was written, with its evidence."""

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    @property
    def boards(self) -> Path:
        return self.root / "leaderboards"

    @property
    def checkpoint(self) -> Path:
        return self.root / "run" / "best.safetensors"

    @property
    def file(self) -> Path:
        (file,) = self.boards.glob("*/*/entries/*.json")
        return file

    @property
    def bundle(self) -> Path:
        return layout.bundle_path(self.file)

    @property
    def weights(self) -> Path:
        return layout.weights_path(self.file.parents[1], self.entry)

    def samples(self, metric: str) -> Arrays:
        """Return the stored outcomes of a metric."""
        found = self.store.samples(self.entry.measurements[metric])
        assert found is not None
        return found

    def rewrite(self, **fields: Any) -> None:
        """Change the entry's file and nothing else."""
        self.file.write_text(self.entry.model_copy(update=fields).model_dump_json(indent=2))

    def measurement(self, metric: str, **fields: Any) -> dict[str, Any]:
        """Return the entry's measurements with another one of a metric."""
        changed = self.entry.measurements[metric].model_copy(update=fields)
        return self.entry.measurements | {metric: changed}

    def forge(self, metric: str, samples: Arrays, *, claim: bool = False) -> None:
        """Write entry and bundle anew from other outcomes, digests and all; ``claim``: with their accuracies too."""
        measurements = self.entry.measurements
        if claim:
            verdicts = registry.get(metric).verdicts(samples)
            values = measurements[metric].values | {name: percent(right) for name, right in verdicts.items()}
            packed = {name: pack(right) for name, right in verdicts.items()}
            measurements = self.measurement(metric, values=values, verdicts=packed)
        entry = self.entry.model_copy(update={"measurements": measurements})
        np.savez(self.store.root / str(measurements[metric].samples), allow_pickle=False, **samples)
        digest = bundle.write(self.boards, entry, self.store, self.checkpoint)
        write_entry(self.boards, entry.model_copy(update={"evidence": digest}))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def original(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A small network after a few steps of training, measured with attacks that have few steps."""
    made = measured(tmp_path_factory.mktemp("made"), digits, seed=0)
    for metric in ("pgd20", "autoattack"):
        assert 5 < (made.samples(metric)["encoding"] != evidence.NONE).sum() < N - 5
    assert (made.samples("autoattack")["broken_by"] == -1).any()
    return made


def measured(root: Path, digits: Dataset, seed: int, metrics: Sequence[str] | None = None) -> Made:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(seed)
        shorten(patch)
        made = Made(root, train(root / "run" / "best.safetensors", digits))
        settings = {"clean": {}, "pgd20": {"steps": 3}, "autoattack": {}, "energy": {}}
        protocol = Protocol(id="short-v1", threat="Linf:0.05", shard=20, metrics=settings)
        subject = from_checkpoint(made.checkpoint, CPU)
        results = evaluate(subject, digits, protocol, metrics=metrics, limit=N, store=made.store, progress=False)
    torch.set_num_threads(threads)
    entry = made.entry.model_copy(
        update={
            "measurements": results,
            "protocol": ProtocolInfo(id=protocol.id, hash=protocol.hash, role=protocol.role),
        }
    )
    digest = bundle.write(made.boards, entry, made.store, made.checkpoint)
    entry = entry.model_copy(update={"evidence": digest})
    assert read_entry(write_entry(made.boards, entry)) == entry
    return Made(root, entry)


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Leave AutoAttack few steps: it is not what is tested here."""
    own = AutoAttack.run_standard_evaluation

    def short(adversary: AutoAttack, *images: Any, **options: Any) -> Any:
        adversary.apgd.n_iter, adversary.apgd_targeted.n_iter = 10, 5
        adversary.fab.n_iter, adversary.square.n_queries = 2, 10
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 2
        return own(adversary, *images, **options)

    patch.setattr(AutoAttack, "run_standard_evaluation", short)


def train(path: Path, digits: Dataset) -> Entry:
    """Train for a moment, write the checkpoint, and return its entry without measurements."""
    config = BackboneConfig("wrn", 10, 1)
    model = build(config, 10, (1, 8, 8), digits.mean, digits.std)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for index in torch.randperm(len(digits.train)).split(64)[:12]:
        optimizer.zero_grad()
        cross_entropy(model(digits.train.unit(index)), digits.train.labels[index]).backward()
        optimizer.step()
    description = {"backbone": asdict(config), "num_classes": 10, "image_shape": [1, 8, 8]}
    save_weights(path, model.state_dict(), description | {"mean": digits.mean, "std": digits.std})
    subject = from_checkpoint(path, CPU)
    return Entry(
        recipe="standard",
        dataset="digits",
        threat="Linf:0.05",
        seed=0,
        config_digest="c" * 64,
        subject=SubjectInfo(
            kind="checkpoint",
            weights_digest=subject.digest,
            which="best",
            architecture=subject.architecture,
            parameters=subject.parameters,
        ),
        data=DataInfo(digests=dict(digits.digests), n=N, of=300),
        partial=True,
        protocol=ProtocolInfo(id="none", hash="0" * 12, role="custom"),
        measurements={},
    )


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Made:
    """A copy of the measured checkpoint, to be changed."""
    shutil.copytree(original.root, tmp_path / "made")
    return Made(tmp_path / "made", original.entry)


@pytest.fixture
def verify(digits: Dataset) -> Iterator[Callable[..., Verification]]:
    """Verify an entry, with the data set at hand."""

    def call(file: Path, **arguments: Any) -> Verification:
        return verifying.verify(file, loaded={("digits", None): digits}, **arguments)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield call
    torch.set_num_threads(threads)


Verify = Callable[..., Verification]


def failed(verification: Verification) -> list[str]:
    """Return the names of the checks that failed."""
    assert not verification.passed
    return [line.check for line in verification.lines if line.passed is False]


def test_an_honest_entry_verifies_from_what_lies_beside_it(original: Made, verify: Verify) -> None:
    found = verify(original.file)
    assert found.passed
    lines = {line.check: line.detail for line in found.lines}
    for metric in ("pgd20", "autoattack"):
        broken = int((original.samples(metric)["encoding"] != evidence.NONE).sum())
        assert lines[f"{metric}: broken"].startswith(f"{broken} of {broken} are misclassified")
        assert lines[f"{metric}: accuracy"].startswith(
            f"{original.entry.measurements[metric].values['accuracy']:.2f} %"
        )
    assert lines["other metrics"] == "not recomputed: energy"
    assert original.weights.read_bytes() == original.checkpoint.read_bytes()
    assert "Not proven: that the other images are robust" in verifying.MEANING


def test_only_broken_images_are_kept_and_they_decode_as_the_stored_ones(original: Made, digits: Dataset) -> None:
    x = digits.test.unit(slice(0, N))
    threat = ThreatModel.parse(original.entry.threat)
    with np.load(original.bundle) as file:
        kept = {name: file[name] for name in file.files}
    for metric in ("pgd20", "autoattack"):
        samples = original.samples(metric)
        places = kept[f"{metric}.delta_index"], kept[f"{metric}.exact_index"]
        for index, encoding in zip(places, (evidence.BYTES, evidence.EXACT), strict=True):
            assert index.tolist() == np.flatnonzero(samples["encoding"] == encoding).tolist()
        index = torch.from_numpy(places[0])
        again = evidence.shifted(x[index], torch.from_numpy(kept[f"{metric}.delta"]), threat)
        assert torch.equal(again, evidence.decode(x, samples, threat)[index])
        assert kept[f"{metric}.delta"].dtype == np.int8
    assert set(kept) >= {"header", "clean.predicted", "pgd20.correct", "autoattack.broken_by"}
    assert not [name for name in kept if "energy" in name or "perturbation" in name]


def test_the_same_outcomes_give_the_same_bytes(original: Made, tmp_path: Path) -> None:
    again = bundle.write(tmp_path, original.entry, original.store, original.checkpoint)
    assert again == original.entry.evidence
    (file,) = tmp_path.glob("digits/*/evidence/*.npz")
    assert file.read_bytes() == original.bundle.read_bytes()
    with zipfile.ZipFile(file) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_same_weights_from_another_recipe_verify_beside_the_first(
    made: Made, verify: Verify, tmp_path: Path
) -> None:
    """Their file differs in what it says of itself, and only one of the two lies there."""
    first = load_checkpoint(made.checkpoint)
    other = tmp_path / "other.safetensors"
    save_weights(other, first.model.state_dict(), first.metadata | {"recipe": "other"})
    assert other.read_bytes() != made.weights.read_bytes()
    file, entry = made.file, made.entry.model_copy(update={"recipe": "other", "config_digest": "d" * 64})
    entry = entry.model_copy(update={"evidence": bundle.write(made.boards, entry, made.store, other)})
    assert verify(write_entry(made.boards, entry)).passed
    assert verify(file).passed


@pytest.mark.parametrize("where", [0, 1 / 5, 1 / 2, 4 / 5, 1])
def test_one_flipped_byte_of_the_bundle_is_found(made: Made, verify: Verify, where: float) -> None:
    flip(made.bundle, where)
    try:
        assert failed(verify(made.file)) == ["bundle"]
    except InputError as error:  # the archive's directory, without which nothing can be read
        assert "truncated or damaged" in str(error)
        assert where == 1


@pytest.mark.parametrize("where", [0, 0.001, 1 / 2, 1])
def test_one_flipped_byte_of_the_weights_is_found(made: Made, verify: Verify, where: float) -> None:
    flip(made.weights, where)
    assert failed(verify(made.file)) == ["weights"]


def flip(file: Path, where: float) -> None:
    content = bytearray(file.read_bytes())
    content[round(where * (len(content) - 1))] ^= 0x10
    file.write_bytes(content)


def test_a_changed_entry_is_found(made: Made, verify: Verify) -> None:
    values = made.entry.measurements["autoattack"].values
    made.rewrite(measurements=made.measurement("autoattack", values=values | {"accuracy": 75.0}))
    found = verify(made.file)
    assert failed(found) == ["entry", "autoattack: accuracy"]
    assert "accuracy is" in found.lines[-2].detail
    assert "and not 75.0" in found.lines[-2].detail

    right = np.zeros(N, bool)
    verdicts = made.entry.measurements["pgd20"].verdicts | {"accuracy": pack(right)}
    made.rewrite(measurements=made.measurement("pgd20", verdicts=verdicts))
    assert failed(verify(made.file)) == ["entry", "pgd20: accuracy"]

    energies = made.entry.measurements["energy"].values | {"energy_gap_mean": 0.0}
    made.rewrite(measurements=made.measurement("energy", values=energies))
    assert failed(found := verify(made.file)) == ["entry"]
    assert found.lines[1].detail.endswith("written for: energy")

    made.rewrite(evidence="0" * 64)
    assert failed(verify(made.file)) == ["bundle"]
    made.rewrite(threat="Linf:0.06")
    assert failed(found := verify(made.file)) == ["entry"]
    assert "threat" in found.lines[-1].detail
    made.rewrite(measurements={name: found for name, found in made.entry.measurements.items() if name != "clean"})
    assert failed(verify(made.file)) == ["entry"]


def beyond_eps(samples: Arrays, first: int) -> None:
    samples["delta"][first][samples["delta"][first] == -127] = -128


def nan(samples: Arrays, first: int) -> None:
    samples["encoding"][first] = evidence.EXACT
    samples["exact"][first] = np.nan


def outside_the_cube(samples: Arrays, first: int) -> None:
    samples["encoding"][first] = evidence.EXACT
    samples["exact"][first] = -0.01


def healed(samples: Arrays, first: int) -> None:
    samples["delta"][first] = 0


def dropped(samples: Arrays, first: int) -> None:
    samples["encoding"][first] = evidence.NONE


def contradicted(samples: Arrays, first: int) -> None:
    name, robust = ("correct", True) if "correct" in samples else ("broken_by", 0)
    samples[name][first] = robust


@pytest.mark.parametrize("metric", ["pgd20", "autoattack"])
@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (beyond_eps, ["norm"]),
        (nan, ["range", "norm"]),
        (outside_the_cube, ["range", "norm"]),
        (healed, ["broken"]),
        (dropped, ["the rest"]),
        (contradicted, ["the rest"]),
    ],
)
def test_false_evidence_is_found_though_every_digest_fits(
    made: Made, verify: Verify, digits: Dataset, metric: str, change: Callable[[Arrays, int], None], checks: list[str]
) -> None:
    samples = made.samples(metric)
    # Right when clean, and with room for a 128th step down.
    room = ((samples["delta"] == -127) & (digits.test.unit(slice(0, N)).numpy() > 0.1)).any((1, 2, 3))
    kept = (samples["encoding"] == evidence.BYTES) & room & made.samples("clean")["correct"]
    change(samples, int(np.flatnonzero(kept)[0]))
    made.forge(metric, samples, claim=change is contradicted)
    assert failed(verify(made.file)) == [f"{metric}: {check}" for check in checks]


def test_false_clean_verdicts_are_found_though_every_digest_fits(made: Made, verify: Verify) -> None:
    samples = made.samples("clean")
    wrong = np.flatnonzero(~samples["correct"])
    samples["correct"][wrong[0]] = True
    made.forge("clean", samples, claim=True)
    assert failed(verify(made.file)) == ["clean: predictions"]

    samples["correct"][wrong[0]] = False
    right = int(np.flatnonzero(samples["correct"])[0])
    samples["predicted"][right], samples["correct"][right] = (samples["predicted"][right] + 1) % 10, False
    made.forge("clean", samples, claim=True)
    assert failed(verify(made.file))[0] == "clean: predictions"

    samples = made.samples("autoattack")
    for robust_or_broken_later in (0, 1):
        samples["broken_by"][wrong[0]] = robust_or_broken_later
        made.forge("autoattack", samples, claim=True)
        assert "autoattack: the rest" in failed(verify(made.file))


def test_what_a_metric_may_say_of_images_that_are_wrong_when_clean(made: Made, verify: Verify) -> None:
    """PGD-20 classifies its last iterate, which may be right where the clean image is wrong."""
    samples = made.samples("pgd20")
    wrong = int(np.flatnonzero(~made.samples("clean")["correct"])[0])
    samples["correct"][wrong], samples["encoding"][wrong] = True, evidence.NONE
    made.forge("pgd20", samples, claim=True)
    found = verify(made.file)
    assert found.passed
    assert any(
        "of these count as right, since pgd20 classifies the attacked image alone" in line.detail
        for line in found.lines
    )


def test_robustness_itself_is_not_proven(made: Made, verify: Verify) -> None:
    """Who keeps a broken image back, and says so everywhere, is refuted by nothing but an attack."""
    samples = made.samples("autoattack")
    broken = np.flatnonzero(samples["broken_by"] > 0)
    samples["broken_by"][broken], samples["encoding"][broken] = 0, evidence.NONE
    made.forge("autoattack", samples, claim=True)
    assert verify(made.file).passed


def test_an_image_on_the_boundary_is_decided_by_rounding(made: Made, verify: Verify, digits: Dataset) -> None:
    samples, subject = made.samples("pgd20"), from_checkpoint(made.checkpoint, CPU)
    kept = (samples["encoding"] != evidence.NONE) & made.samples("clean")["correct"]
    first = int(np.flatnonzero(kept)[0])
    x, y = digits.test.unit(slice(first, first + 1)), digits.test.labels[first : first + 1]
    one = {name: samples[name][first : first + 1] for name in ("encoding", "delta", "exact")}
    x_adv = evidence.decode(x, one, ThreatModel.parse(made.entry.threat))
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        right = float(evidence.margin(subject, x.lerp(x_adv, middle), y, 1)) > 0
        low, high = (middle, high) if right else (low, middle)
    # On the side where it is right, by less than rounding.
    samples["encoding"][first], samples["exact"][first] = evidence.EXACT, x.lerp(x_adv, low)[0].numpy()
    made.forge("pgd20", samples)
    found = verify(made.file)
    assert found.passed
    (line,) = [line for line in found.lines if line.check == "pgd20: broken"]
    assert line.detail.endswith("are misclassified, 1 decided by rounding here")


def test_a_metric_left_out_of_the_bundle_is_found(made: Made, verify: Verify) -> None:
    (made.store.root / str(made.entry.measurements["autoattack"].samples)).unlink()
    digest = bundle.write(made.boards, made.entry, made.store, made.checkpoint)
    made.rewrite(evidence=digest)
    assert failed(verify(made.file)) == ["autoattack"]


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_bundle_is_told_in_one_sentence(made: Made, verify: Verify, part: float) -> None:
    content = made.bundle.read_bytes()
    made.bundle.write_bytes(content[: round(part * len(content))])
    with pytest.raises(InputError, match="is truncated or damaged"):
        verify(made.file)


def test_another_model_s_bundle_and_weights_are_named(
    made: Made, verify: Verify, digits: Dataset, tmp_path: Path
) -> None:
    other = measured(tmp_path / "other", digits, seed=1, metrics=["clean", "pgd20"])
    assert verify(other.file).passed
    shutil.copy(other.checkpoint, tmp_path / "other.safetensors")
    assert failed(verify(made.file, checkpoint=tmp_path / "other.safetensors")) == ["weights"]
    shutil.copy(other.bundle, made.bundle)
    with pytest.raises(InputError, match="is of another model"):
        verify(made.file)


def test_weights_that_are_not_the_entry_s_are_found_though_every_digest_fits(made: Made, verify: Verify) -> None:
    info = made.entry.subject.model_copy(update={"weights_digest": "0" * 64})
    entry = made.entry.model_copy(update={"subject": info})
    digest = bundle.write(made.boards, entry, made.store, made.checkpoint)
    made.rewrite(subject=info, evidence=digest)
    assert failed(verify(made.file)) == ["weights"]


def test_what_is_missing_or_foreign_is_told_in_one_sentence(made: Made, verify: Verify, tmp_path: Path) -> None:
    made.weights.unlink()
    with pytest.raises(InputError, match=r"The weights of .* are not at .*--checkpoint"):
        verify(made.file)
    assert verify(made.file, checkpoint=made.checkpoint).passed
    assert verify(made.file, checkpoint=made.checkpoint.parent).passed
    with pytest.raises(InputError, match=r"are not at .*nowhere"):
        verify(made.file, checkpoint=tmp_path / "nowhere")

    digests = made.entry.data.digests | {"test": "0" * 64}
    forged = made.entry.model_copy(update={"data": made.entry.data.model_copy(update={"digests": digests})})
    digest = bundle.write(made.boards, forged, made.store, made.checkpoint)
    write_entry(made.boards, forged.model_copy(update={"evidence": digest}))
    with pytest.raises(InputError, match="test images of digits here are not those that were measured"):
        verify(made.file)

    made.rewrite()
    made.bundle.write_text("no archive")
    with pytest.raises(InputError, match="is truncated or damaged"):
        verify(made.file)
    made.bundle.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        verify(made.file)
    made.rewrite(evidence=None)
    with pytest.raises(InputError, match="names no evidence bundle"):
        verify(made.file)
    made.file.write_text('{"some": "JSON"}')
    with pytest.raises(InputError, match='unknown key "some"'):
        verify(made.file)


def test_a_later_format_is_told_in_one_sentence(made: Made, verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "FORMAT", 2)
    with pytest.raises(InputError, match=r"has the format \[1, 1\], and this version reads \[2, 1\]"):
        verify(made.file)


@pytest.mark.parametrize(
    ("metric", "name", "change"),
    [
        ("pgd20", "delta", lambda kept: kept[:, :, :4]),
        ("pgd20", "exact", lambda kept: kept.astype(np.float64)),
        ("autoattack", "broken_by", lambda kept: kept[:-1]),
        ("clean", "predicted", lambda kept: kept + 10),
        ("clean", "predicted", lambda kept: kept - 10),
        ("clean", "correct", lambda kept: kept.astype(np.float32)),
    ],
)
def test_arrays_of_another_form_are_told_in_one_sentence(
    made: Made, verify: Verify, metric: str, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    samples = made.samples(metric)
    made.forge(metric, samples | {name: change(samples[name])})
    with pytest.raises(InputError, match=f"is malformed: {metric}: "):
        verify(made.file)


@pytest.mark.parametrize(
    ("classes", "shape", "broken", "sentence"),
    [
        (10, (1, 8, 8), True, "outputs are not finite"),
        (4, (1, 8, 8), False, "for other images or classes than digits has"),
        (10, (3, 8, 8), False, "for other images or classes than digits has"),
    ],
)
def test_a_model_that_cannot_be_asked_is_told_in_one_sentence(
    made: Made, verify: Verify, classes: int, shape: tuple[int, int, int], broken: bool, sentence: str
) -> None:
    config, mean = BackboneConfig("wrn", 10, 1), [0.5] * shape[0]
    model = build(config, classes, shape, mean, mean)
    if broken:
        next(model.parameters()).data.fill_(torch.nan)
    description = {"backbone": asdict(config), "num_classes": classes, "image_shape": shape, "mean": mean, "std": mean}
    save_weights(made.checkpoint.with_name("weights.safetensors"), model.state_dict(), description)
    last = made.checkpoint.with_name("weights.safetensors")
    info = made.entry.subject.model_copy(update={"weights_digest": from_checkpoint(last, CPU).digest, "which": "last"})
    entry = made.entry.model_copy(update={"subject": info})
    digest = bundle.write(made.boards, entry, made.store, last)
    file = write_entry(made.boards, entry.model_copy(update={"evidence": digest}))
    with pytest.raises(InputError, match=sentence):
        verify(file, checkpoint=last.parent)


def test_every_entry_of_a_folder_is_verified(made: Made, digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no entry with an evidence bundle"):
        list(verifying.verify_all(tmp_path / "nowhere"))
    second = made.entry.model_copy(update={"seed": 1})
    digest = bundle.write(made.boards, second, made.store, made.checkpoint)
    first, second_file = made.file, write_entry(made.boards, second.model_copy(update={"evidence": digest}))
    third = write_entry(made.boards, made.entry.model_copy(update={"seed": 2, "evidence": None}))
    assert verifying.find(made.boards) == [first, second_file]
    layout.bundle_path(first).unlink()
    found = list(verifying.verify_all(made.boards))
    assert [verification.passed for verification in found] == [False, True]
    assert "cannot be read" in found[0].lines[0].detail
    with pytest.raises(InputError, match="names no evidence bundle"):
        list(verifying.verify_all(third))
    with pytest.raises(InputError, match="there are 2"):
        list(verifying.verify_all(made.boards, checkpoint=made.checkpoint))


def test_nothing_is_written_for_an_ablation_or_without_outcomes(made: Made, tmp_path: Path) -> None:
    ablation = Entry.model_validate(made.entry.model_dump() | {"ablation": {"name": "weights", "row": "none"}})
    for entry in (ablation, made.entry.model_copy(update={"measurements": {}})):
        assert bundle.write(tmp_path / "boards", entry, made.store, made.checkpoint) is None
    assert not (tmp_path / "boards").exists()


def test_large_weights_stay_with_their_run(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_WEIGHTS", 1000)
    assert bundle.write(tmp_path / "boards", made.entry, made.store, made.checkpoint) == made.entry.evidence
    assert not list((tmp_path / "boards").glob("**/*.safetensors"))
