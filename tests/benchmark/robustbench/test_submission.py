"""Submission kits: entries that RobustBench would refuse are refused, and RobustBench's own code takes the others."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmark.cli import main
from benchmark.evaluation import bundle
from benchmark.models.robustbench_import import imported
from benchmark.models.subject import weights_digest
from benchmark.models.zoo import load_exported
from benchmark.results.entry import Entry, read_entry
from benchmark.robustbench import architecture_file, submission, submission_proof
from benchmark.robustbench.claim import Claim, Paper
from benchmark.robustbench.model_info import read
from benchmark.specs import protocol as protocols
from methods.backbones import BackboneConfig, build
from methods.data import Dataset, ImageSet
from methods.errors import InputError
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import load_checkpoint, save_weights

# Importing RobustBench takes seconds: one worker does it.
pytestmark = pytest.mark.xdist_group("robustbench")

TABLES = Path(__file__).resolve().parents[3] / "leaderboards"
DIGITS = TABLES / "digits" / "linf-0.15" / "entries"
ENTRY = next(DIGITS.glob("pgd_at-*-s0-*.json"))
LINF = ThreatModel.parse("Linf:8/255")
PAPER = [
    "--paper",
    "A Title",
    "--authors",
    "A. One, B. Two",
    "--url",
    "https://arxiv.org/abs/1",
    "--venue",
    "ICML 2026",
]


@dataclass(frozen=True)
class Made:
    """A kit, and what the command that wrote it printed."""

    folder: Path
    status: int
    out: str
    err: str

    @property
    def lines(self) -> dict[str, str]:
        """By check, what was printed of it."""
        parts = [line.split(": ", 2) for line in self.out.splitlines()]
        return {part[1]: part[0] for part in parts if len(part) == 3 and part[0] in ("ok", "FAILED", "not checked")}

    def proof(self) -> dict[str, Any]:
        return json.loads((self.folder / "proof.json").read_text())


def exported(entry: Path, model_id: str, folder: Path, *options: str) -> Made:
    out, err = StringIO(), StringIO()
    arguments = [
        "export",
        "robustbench",
        entry,
        "--model-id",
        model_id,
        "--output",
        folder,
        "--device",
        "cpu",
        *options,
    ]
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return Made(folder, int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The kit of a real entry of digits, whose weights and evidence lie beside it."""
    folder = tmp_path_factory.mktemp("rehearsal") / "kit"
    return exported(ENTRY, "One2026Title_WRN-10-1", folder, "--paper", "A Title", "--footnote", "for p < 0.5 & more")


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Write the entry with some fields replaced, dotted names reaching into it, and return the file."""

    def write(**fields: Any) -> Path:
        content = json.loads(ENTRY.read_text())
        for name, value in fields.items():
            *parents, last = name.split("__")
            place = content
            for parent in parents:
                place = place[parent]
            if value is ...:
                del place[last]
            else:
                place[last] = value
        path = tmp_path / "leaderboards" / "digits" / "linf-0.15" / "entries" / "edited.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
        return path

    return write


def cifar10(**fields: Any) -> dict[str, Any]:
    """Return the fields of an entry of CIFAR-10 that RobustBench would take."""
    protocol = protocols.load("cifar10-linf-8_255-v3")
    info = {"id": protocol.id, "hash": protocol.hash, "role": "standard"}
    return {"dataset": "cifar10", "threat": protocol.threat, "protocol": info} | fields


@pytest.fixture
def refused(command: Any, tmp_path: Path) -> Callable[..., str]:
    """Return the sentence with which the command refuses an entry, without having written anything."""

    def run(entry: Path, *options: str, model_id: str = "One2026Title") -> str:
        before = set(tmp_path.rglob("*"))
        done = command("export", "robustbench", entry, "--model-id", model_id, *(options or PAPER))
        assert done.status == 2
        assert done.out == ""
        assert done.err.startswith("Error: ")
        assert done.err.count("\n") == 1
        assert set(tmp_path.rglob("*")) == before
        return done.err.removeprefix("Error: ").strip()

    return run


def test_kit_of_a_real_entry_passes_robustbench(rehearsal: Made) -> None:
    assert (rehearsal.status, rehearsal.err) == (0, ""), rehearsal.out
    assert rehearsal.lines == dict.fromkeys(
        [
            "evidence",
            "architecture file",
            "RobustBench's load_model",
            "clean accuracy on 200 images",
            "clean accuracy on all 300 images",
            "RobustBench's list_available_models",
            "RobustBench's bibtex",
            "RobustBench's latex",
            "RobustBench's leaderboard",
        ],
        "ok",
    )
    entry = read_entry(ENTRY)
    (path,) = rehearsal.folder.glob("model_info/*/*/*.json")
    assert path.relative_to(rehearsal.folder) == Path("model_info/digits/Linf/One2026Title_WRN-10-1.json")
    assert json.loads(path.read_text()) == {
        "link": "https://robustbench.github.io/",
        "name": "REHEARSAL, NOT FOR SUBMISSION: A Title",
        "authors": "N/A",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "digits",
        "venue": "Rehearsal 2026",
        "architecture": "WideResNet-10-1",
        "eps": "0.15",
        "clean_acc": f"{entry.measurements['clean'].values['accuracy']:.2f}",
        "reported": "",
        "autoattack_acc": f"{entry.measurements['autoattack'].values['accuracy']:.2f}",
        "footnote": "for p &lt; 0.5 &amp; more",
        "unreliable": False,
    }


def test_rehearsal_says_so_at_the_top_of_every_text(rehearsal: Made) -> None:
    notice = "REHEARSAL, NOT FOR SUBMISSION: measured on digits at Linf:0.15"
    texts = [path for path in rehearsal.folder.rglob("*") if path.is_file() and path.suffix != ".pt"]
    assert len(texts) == 7
    for path in texts:
        assert any("REHEARSAL" in line for line in path.read_text().splitlines()[:3]), path
    assert notice in rehearsal.out
    with pytest.raises(InputError, match="\"dataset\" is 'digits', but input should be 'cifar10'"):
        read(next(rehearsal.folder.glob("model_info/*/*/*.json")))


def test_proof_records_the_digest_of_every_file(rehearsal: Made) -> None:
    files = {path for path in rehearsal.folder.rglob("*") if path.is_file() and path.name != "proof.json"}
    digests = {str(path.relative_to(rehearsal.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert rehearsal.proof()["sha256"] == digests
    assert digests["One2026Title_WRN-10-1.pt"] in (rehearsal.folder / "issue.md").read_text()


def test_architecture_file_needs_torch_alone_and_nothing_unused(rehearsal: Made) -> None:
    file = rehearsal.folder / "one2026title_wrn_10_1.py"
    imported_ = {
        (node.module or "").partition(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported_ - sys.stdlib_module_names == {"torch"}
    undefined = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", str(file)]
    found = subprocess.run(undefined, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_log_has_the_cascade_and_a_seed_for_each_shard(rehearsal: Made) -> None:
    log = (rehearsal.folder / "autoattack.log").read_text()
    values = read_entry(ENTRY).measurements["autoattack"].values
    for name, title in {"apgd_ce": "APGD-CE", "apgd_t": "APGD-T", "fab_t": "FAB-T", "square": "Square"}.items():
        assert f"robust accuracy after {title}: {values[f'after_{name}']:.2f}% (" in log
    assert "pyautoattack 0.2.0" in log
    assert "images 200 to 299: 7757316958842853451\n" in log
    assert "warning: none\n" in log


# A kit that is no rehearsal, of a network of timm's, whose model is as bad as its weights are random.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The kit of an entry of CIFAR-10 at L2, on images of noise that stand in for CIFAR-10's, which is not here."""
    root = tmp_path_factory.mktemp("real")
    torch.manual_seed(0)
    config = BackboneConfig("timm:test_byobnet")
    model = build(config, 10, (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)).eval()
    x, y = torch.randint(0, 256, (210, 3, 32, 32), dtype=torch.uint8), torch.arange(210) % 10
    images = ImageSet(x, y)
    with torch.no_grad():
        right = model(images.unit()).argmax(1) == y
    description = {"backbone": vars(config), "num_classes": 10, "image_shape": (3, 32, 32), "mean": [0.5] * 3}
    save_weights(root / "weights.safetensors", model.state_dict(), description | {"std": [0.25] * 3})

    protocol = protocols.load("standard-v3", "L2:0.5")
    content = json.loads(ENTRY.read_text())
    content["measurements"] = {name: content["measurements"][name] for name in ("clean", "autoattack")}
    content["measurements"]["clean"]["values"]["accuracy"] = 100 * float(right.double().mean())
    content |= {
        "dataset": "cifar10",
        "threat": "L2:0.5",
        "evidence": None,
        "data": {"digests": {}, "n": 210, "of": 210},
    }
    content["protocol"] = {"id": protocol.id, "hash": protocol.hash, "role": "standard"}
    content["subject"] |= {"weights_digest": weights_digest(model), "architecture": config.architecture}
    (root / "entry.json").write_text(json.dumps(content))

    dataset = Dataset("cifar10", tuple("abcdefghij"), images, images, images, (0.5,) * 3, (0.25,) * 3)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(submission, "measured_on", lambda *_: dataset)
        options = [*PAPER, "--checkpoint", str(root / "weights.safetensors"), "--reported", "55"]
        return exported(root / "entry.json", "One2026Title", root / "kit", *options)


def test_kit_of_cifar10_is_one_to_submit(real: Made) -> None:
    info = read(real.folder / "model_info" / "cifar10" / "L2" / "One2026Title.json")
    assert (info.eps, info.reported, info.venue, info.authors) == ("0.5", "55.00", "ICML 2026", "A. One, B. Two")
    assert info.unreliable is None, "no masking checks were run"
    issue = (real.folder / "issue.md").read_text()
    assert "- **Architecture**: test_byobnet\n- **Dataset**: cifar10\n- **Threat Model**: L2\n- **eps**: 0.5\n" in issue
    assert "The masking checks were not run on this model. So `unreliable` is left out" in issue
    assert "(the paper reports 55.00%)" in issue
    assert "for the dict `l2`" in (real.folder / "zoo_entry.py").read_text()
    assert "REHEARSAL" not in "".join(path.read_text() for path in real.folder.rglob("*.*") if path.suffix != ".pt")


def test_network_of_timm_is_exported(real: Made) -> None:
    assert real.lines["architecture file"] == "ok", real.out
    assert real.lines["RobustBench's load_model"] == "ok", real.out


@pytest.mark.parametrize(
    ("architecture", "depth", "name", "shown"),
    [
        ("resnet", 18, "resnet-18-1", "ResNet-18-1"),
        ("preact-resnet", 18, "preact-resnet-18-1", "PreActResNet-18-1"),
        ("swish-wrn", 10, "swish-wrn-10-1", "WideResNet-SiLU-10-1"),
        ("jem-wrn", 10, "jem-wrn-10-1", "JEM WideResNet-10-1"),
    ],
)
def test_architecture_file_makes_the_network_alone(architecture: str, depth: int, name: str, shown: str) -> None:
    config = BackboneConfig(architecture, depth, 1)
    model = build(config, 10, (1, 8, 8), (0.3,), (0.4,)).eval()
    entry = read_entry(ENTRY)
    subject = entry.subject.model_copy(update={"architecture": name})
    entry = entry.model_copy(update={"subject": subject})
    claim = Claim("One2026Title", entry, protocols.load("standard-v3", "Linf:0.15"), Paper("A Title"))
    assert claim.architecture == shown
    text = architecture_file.source(claim, model, config)
    assert "methods" not in {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    made: dict[str, Any] = {"__name__": "alone"}
    exec(compile(text, "alone", "exec"), made)
    alone = made[claim.factory]().eval()
    alone.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(alone(x), model(x))


def test_failing_proof_gives_status_1_and_says_which_part(real: Made) -> None:
    assert (real.status, real.err) == (1, "failed: RobustBench would not take this kit as it is.\n")
    failed = [check for check, mark in real.lines.items() if mark == "FAILED"]
    assert failed == ["clean accuracy on 200 images"]
    assert real.lines["clean accuracy on all 210 images"] == "ok"
    assert real.lines["evidence"] == "not checked"
    (line,) = [line for line in real.proof()["checks"] if line["passed"] is False]
    assert line["detail"].endswith("and RobustBench's test asks for over 70 %")


def test_accuracy_that_is_not_the_one_of_the_evidence_fails(edited: Callable[..., Path]) -> None:
    path = edited(measurements__autoattack__values__accuracy=78.0)
    entry = read_entry(path)
    for beside in (bundle.bundle_path, lambda file: bundle.weights_path(file.parents[1], entry)):
        beside(path).parent.mkdir(parents=True)
        shutil.copyfile(beside(ENTRY), beside(path))
    line = submission.evidenced(path)
    assert line.passed is False
    assert "is not what the bundle was written for: autoattack" in line.detail
    assert "accuracy is 77.0000 %, and not 78.0" in line.detail


# What RobustBench's loader does with other weights and entries of its zoo: a landmine each.


@pytest.fixture
def network(rehearsal: Made) -> Callable[[], nn.Module]:
    """The class in the kit's architecture file."""
    job = {"architecture": str(rehearsal.folder / "one2026title_wrn_10_1.py"), "factory": "One2026Title_WRN_10_1Net"}
    return submission_proof.factory(job)


def test_model_that_is_not_the_checkpoint_fails(rehearsal: Made) -> None:
    job = {
        "architecture": str(rehearsal.folder / "one2026title_wrn_10_1.py"),
        "factory": "One2026Title_WRN_10_1Net",
        "weights": str(rehearsal.folder / "One2026Title_WRN-10-1.pt"),
    }
    found = submission_proof.alone(job, {"x": torch.zeros(1, 1, 8, 8), "logits": torch.full((1, 10), 1e6)})
    line = submission._same("architecture file", found)
    assert line.passed is False
    # This very process has imported the project.
    assert line.detail.startswith("it needs this project: benchmark, methods; its logits differ from the checkpoint's")


@pytest.fixture
def state(rehearsal: Made) -> dict[str, torch.Tensor]:
    """The kit's weights."""
    return torch.load(rehearsal.folder / "One2026Title_WRN-10-1.pt", weights_only=True)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., nn.Module]:
    """Load weights by RobustBench's own loader."""

    def load(factory: Callable[[], nn.Module], weights: Any) -> nn.Module:
        path = tmp_path / "weights.pt"
        torch.save(weights, path)
        return load_exported("One2026Title", factory, path, "cifar10", LINF)

    return load


def test_weights_are_plain_tensors_of_the_checkpoint(state: dict[str, torch.Tensor]) -> None:
    entry = read_entry(ENTRY)
    own = load_checkpoint(bundle.weights_path(ENTRY.parents[1], entry)).model.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in state.items())


def test_landmine_key_with_model_in_it(state: dict[str, torch.Tensor], loaded: Callable[..., nn.Module]) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.ModuleDict({"model": nn.Linear(2, 2)})

    with pytest.raises(InputError, match="RobustBench does not load One2026Title"):
        loaded(Wrapped, Wrapped().state_dict())
    assert not [name for name in state if "model." in name or "module." in name]


@pytest.mark.parametrize("buffer", ["mean", "std"])
def test_landmine_normalisation_not_in_the_weights(
    network: Callable[[], nn.Module], state: dict[str, torch.Tensor], loaded: Callable[..., nn.Module], buffer: str
) -> None:
    assert torch.equal(loaded(network, state).state_dict()[buffer], state[buffer])
    with pytest.raises(InputError, match="RobustBench does not load One2026Title"):
        loaded(network, {name: value for name, value in state.items() if name != buffer})


def test_landmine_arguments_beside_the_weights(rehearsal: Made, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, path)
    job = {
        "architecture": str(rehearsal.folder / "one2026title_wrn_10_1.py"),
        "factory": "One2026Title_WRN_10_1Net",
        "weights": str(path),
    }
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        submission_proof.alone(job, {})


def zoo(rehearsal: Made) -> tuple[str, dict[str, Any]]:
    """Return the entry of the zoo as Python reads it, the architecture's import replaced by a stand-in."""
    tree = ast.parse((rehearsal.folder / "zoo_entry.py").read_text())
    line, entry = tree.body
    assert isinstance(line, ast.ImportFrom)
    assert line.module == "robustbench.model_zoo.architectures.one2026title_wrn_10_1"
    assert isinstance(entry, ast.Expr)
    (made,) = eval(compile(ast.Expression(entry.value), "zoo", "eval"), {line.names[0].name: nn.Identity})
    return made


def test_landmine_no_google_drive_id(rehearsal: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_id, entry = zoo(rehearsal)
    assert model_id == "One2026Title_WRN-10-1"
    assert entry["gdrive_id"] == "TO BE FILLED IN"
    with imported() as robustbench:
        enums = robustbench.model_zoo.enums
        models = robustbench.model_zoo.model_dicts[enums.BenchmarkDataset.cifar_10][enums.ThreatModel.Linf]
        monkeypatch.setitem(models, model_id, entry | {"gdrive_id": None})
        with pytest.raises(ValueError, match="no `gdrive_id` specified"):
            robustbench.load_model(model_id, model_dir=tmp_path)


def test_landmine_an_instance_where_the_zoo_calls(rehearsal: Made, loaded: Callable[..., nn.Module]) -> None:
    assert callable(zoo(rehearsal)[1]["model"])
    instance: Any = nn.Linear(2, 2)
    with pytest.raises(InputError, match="RobustBench does not load One2026Title"):
        loaded(instance, instance.state_dict())


# Entries that are refused.


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"partial": True, "data__n": 200},
            "is partial, 200 of 300 test images, and RobustBench's numbers are of all.",
        ),
        (
            {"protocol__role": "authors", "protocol__id": "ebjdat-release-v1"},
            'was measured under "ebjdat-release-v1", a protocol of the role authors, and RobustBench compares',
        ),
        ({"protocol__role": "custom"}, 'was measured under "digits-linf-v3", a protocol of the role custom'),
        ({"protocol__hash": "0" * 12}, 'was measured under another "digits-linf-v3" than the one there is now'),
        ({"measurements__autoattack": ...}, "has no measurement autoattack, on which RobustBench's leaderboards rest."),
        (
            {"measurements__autoattack__status": "failed", "measurements__autoattack__error": "RuntimeError: it broke"},
            "is no result: its measurement autoattack failed (RuntimeError: it broke).",
        ),
        ({"measurements__clean": ...}, "has no measurement clean"),
        ({"measurements__clean__verdicts": {}}, "is older than verdicts per image, of which clean has none"),
        ({"subject__kind": "external"}, "is of a model from elsewhere, whose architecture file is not ours to write."),
        (
            {"subject__flags": ["two forward passes differ by 0.1 (the model draws noise?)"]},
            "is of a model whose answers differ, and RobustBench takes deterministic ones: two forward passes differ",
        ),
        (
            {"measurements__autoattack__flags": ["it seems to be a randomized defense! See there."]},
            "is of a model whose answers differ, and RobustBench takes deterministic ones: it seems to be a randomized",
        ),
        (
            {"measurements__autoattack__flags": ["it seems to be a dynamic defense! See there."]},
            "is of a model that adapts to its input, which RobustBench does not take: it seems to be a dynamic",
        ),
        (
            cifar10(threat="Linf:4/255"),
            "was attacked at Linf:4/255, and RobustBench's leaderboard of cifar10 is for Linf:8/255.",
        ),
        (
            {"dataset": "cifar100", "threat": "L2:0.5"},
            "is at L2:0.5, and RobustBench has no L2 leaderboard of cifar100.",
        ),
    ],
)
def test_entry_that_robustbench_would_refuse(
    edited: Callable[..., Path], refused: Callable[..., str], fields: dict[str, Any], sentence: str
) -> None:
    path = edited(**fields)
    assert refused(path).removeprefix(f"The entry {path} ").startswith(sentence)


@pytest.mark.parametrize("value", ["accuracy", "clean_accuracy", "after_fab_t", "max_perturbation"])
def test_entry_that_lacks_a_number(edited: Callable[..., Path], refused: Callable[..., str], value: str) -> None:
    path = edited(**{f"measurements__autoattack__values__{value}": None})
    assert refused(path) == f'The measurement autoattack of the entry has no number "{value}".'


def test_partial_entries_of_the_tables_are_refused(refused: Callable[..., str]) -> None:
    entry = next((TABLES / "cifar10-jpeg").glob("*/entries/*.json"))
    assert f"is partial, {read_entry(entry).data.n} of 10000 test images" in refused(entry)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"threat": ...}, 'the key "threat" is missing.'),
        ({"treat": "Linf:0.15"}, 'unknown key "treat". Did you mean "threat"?'),
    ],
)
def test_file_that_is_no_entry(
    edited: Callable[..., Path], refused: Callable[..., str], fields: dict[str, Any], sentence: str
) -> None:
    path = edited(**fields)
    assert refused(path) == f"The entry {path}: {sentence}"


def test_missing_entry(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "cannot be read" in refused(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--paper", "A Title"], "RobustBench's records name the authors and a link: give --authors and --url."),
        ([*PAPER, "--venue", "ICML"], "RobustBench's record of the model: \"venue\" is 'ICML', but it should end in"),
        (
            [*PAPER, "--url", "arxiv"],
            "RobustBench's record of the model: \"link\" is 'arxiv', but it should be an address",
        ),
        (
            [*PAPER, "--reported", "101"],
            "RobustBench's record of the model: \"reported\" is '101.00', but it should be",
        ),
        (
            [*PAPER, "--paper", "<i>A</i>"],
            "RobustBench's record of the model: \"name\" is '<i>A</i>', but the leaderboard",
        ),
    ],
)
def test_what_the_author_adds(
    edited: Callable[..., Path], refused: Callable[..., str], options: list[str], sentence: str
) -> None:
    assert refused(edited(**cifar10()), *options).startswith(sentence)


def test_wrong_model_id(refused: Callable[..., str]) -> None:
    assert refused(ENTRY, model_id="mymodel").startswith('"mymodel" is no RobustBench model ID: write the first author')


def test_weights_that_do_not_lie_beside_the_entry(edited: Callable[..., Path], refused: Callable[..., str]) -> None:
    assert refused(edited()).endswith(".safetensors; name the file or run folder with --checkpoint.")


def test_weights_of_another_entry(refused: Callable[..., str]) -> None:
    other = bundle.weights_path(DIGITS.parent, read_entry(next(DIGITS.glob("pgd_at-*-s1-*.json"))))
    sentence = refused(ENTRY, *PAPER, "--checkpoint", str(other))
    assert sentence == f"{other} does not hold the weights that the entry {ENTRY} is of."


def test_model_that_draws_noise(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(path: Path) -> Any:
        found = load_checkpoint(path)
        found.model.network.register_forward_hook(lambda *seen: seen[-1] + torch.rand_like(seen[-1]))
        return found

    monkeypatch.setattr(submission, "load_checkpoint", noisy)
    assert refused(ENTRY).startswith("RobustBench takes deterministic models alone: two forward passes on the same")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["export"], "Missing command."),
        (["export", "robustbench"], "Missing argument"),
        (["export", "robustbench", str(ENTRY), "--paper", "A Title"], "Missing option '--model-id'"),
        (["export", "roubstbench"], "No such command 'roubstbench'."),
    ],
)
def test_bad_usage(command: Any, arguments: list[str], sentence: str) -> None:
    done = command(*arguments)
    assert done.status == 2
    assert done.err.startswith(f"Error: {sentence}")


def test_check_of_a_record(command: Any, real: Made) -> None:
    path = real.folder / "model_info" / "cifar10" / "L2" / "One2026Title.json"
    done = command("export", "check", path)
    assert (done.status, done.out) == (0, f"ok: {path}: clean {read(path).clean_acc} %, AutoAttack 77.00 %\n")


def test_check_of_what_is_no_record(command: Any, rehearsal: Made) -> None:
    (path,) = rehearsal.folder.glob("model_info/*/*/*.json")
    done = command("export", "check", path)
    assert done.status == 2
    assert done.err.startswith(f"Error: The model info {path}: \"dataset\" is 'digits', but input should be")


# What the masking checks and PGD-20 found is passed on as it is.


@pytest.fixture
def claim() -> Callable[..., Claim]:
    """Make a claim of the entry with some fields of its measurements replaced."""

    def make(entry_file: Path = ENTRY, **fields: Any) -> Claim:
        content = read_entry(entry_file).model_dump()
        for name, value in fields.items():
            metric, field = name.split("__")
            content["measurements"][metric][field] = value
        entry = Entry.model_validate(content)
        return Claim("One2026Title", entry, protocols.load(entry.protocol.id), Paper("A Title"))

    return make


@pytest.mark.parametrize(
    ("fields", "doubts"),
    [
        ({}, None),
        ({"masking__values": {"verdict": "suspect: EOT"}}, "The verdict of the masking checks is: suspect: EOT."),
        (
            {"masking__values": {"verdict": None}},
            "The verdict of the masking checks is: none, because the model is at chance.",
        ),
        (
            {"masking__status": "failed", "autoattack__flags": ["zero gradient."]},
            "The masking checks were not run on this model. AutoAttack's number is flagged: zero gradient.",
        ),
        ({"autoattack__flags": ["zero gradient!"]}, "AutoAttack's number is flagged: zero gradient!."),
    ],
)
def test_reliable_is_only_what_the_masking_checks_cleared(
    claim: Callable[..., Claim], fields: dict[str, Any], doubts: str | None
) -> None:
    made = claim(**fields)
    assert made.doubts == doubts
    assert submission.files.record(made).unreliable is (False if doubts is None else None)
    assert (doubts or "are clear, and nothing is flagged") in submission.files.issue(made, "0" * 64)


def test_best_known_accuracy_is_given_where_pgd_adds_to_autoattack(claim: Callable[..., Claim]) -> None:
    (flagged,) = DIGITS.glob("jempp-*-s2-*.json")
    made = claim(flagged)
    autoattack = float(made.accuracy("autoattack"))
    record = submission.files.record(made)
    assert record.external == f"{autoattack - 100 / 300:.2f}"
    assert f"AutoAttack and PGD-20 together: {record.external}%." in submission.files.issue(made, "0" * 64)
    assert submission.files.record(claim()).external is None
