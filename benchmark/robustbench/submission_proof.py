"""Half of a kit's proof, which needs a fresh process: ``python -P submission_proof.py FOLDER``.

The kit's architecture file has to make the model with nothing of this project in the process, which is why the project
is imported only after that, and from the place that the job names. FOLDER holds job.json and images.pt; what was found
goes to found.json there: a step's findings by its name, or {"error": why it broke}.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OWN = ("benchmark", "methods")
"""Packages of this project."""
FEW = 200
"""Number of images of RobustBench's own quick test."""


def factory(job: dict[str, Any]) -> Callable[[], nn.Module]:
    """Return the class that the kit's architecture file has for the model."""
    file = Path(job["architecture"])
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, job["factory"])


@torch.no_grad()
def compared(model: nn.Module, images: dict[str, Tensor]) -> dict[str, Any]:
    """Compare the model's logits on the first images with those of the checkpoint."""
    logits = model(images["x"][:FEW])
    return {
        "equal": torch.equal(logits, images["logits"]),
        "difference": float((logits - images["logits"]).abs().max()),
        "training": model.training,
    }


def alone(job: dict[str, Any], images: dict[str, Tensor]) -> dict[str, Any]:
    """Make the model by the architecture file, and load its weights strictly, without this project."""
    model = factory(job)()
    model.load_state_dict(torch.load(job["weights"], map_location="cpu", weights_only=True), strict=True)
    found = compared(model.eval(), images)
    return found | {"imported": sorted({name.partition(".")[0] for name in sys.modules} & set(OWN))}


def robustbench(job: dict[str, Any], images: dict[str, Tensor]) -> dict[str, Any]:
    """Load the model by RobustBench's loader, and count by RobustBench's function."""
    from benchmark.models.zoo import clean_accuracy, load_exported, model_ids
    from methods.primitives.threat import ThreatModel

    threat = ThreatModel.parse(job["threat"])
    model = load_exported(job["model_id"], factory(job), Path(job["weights"]), job["dataset"], threat)
    found = compared(model, images) | {"taken": job["model_id"] in model_ids(job["dataset"], threat)}
    device = torch.device(job["device"])
    model, x, y = model.to(device), images["x"].to(device), images["y"].to(device)
    few, all_ = clean_accuracy(model, x[:FEW], y[:FEW]), clean_accuracy(model, x, y)
    return found | {"few": 100 * few, "all": 100 * all_}


def consumers(job: dict[str, Any], images: dict[str, Tensor]) -> dict[str, Any]:
    """Give the record to every generator of RobustBench."""
    from benchmark.robustbench.generators import consume
    from methods.primitives.threat import ThreatModel

    return {"texts": consume(Path(job["model_info"]), job["dataset"], ThreatModel.parse(job["threat"]))}


def main(folder: Path) -> None:
    """Take all steps; one that fails does not stop the next."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    images = torch.load(folder / "images.pt", weights_only=True)
    torch.set_num_threads(job["threads"])
    found: dict[str, Any] = {}
    for step in (alone, robustbench, consumers):
        try:
            found[step.__name__] = step(job, images)
        except Exception as error:
            found[step.__name__] = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        sys.path.insert(0, job["project"])
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
