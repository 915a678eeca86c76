"""The names of the data sets, importable without torch."""

import re
from pathlib import Path

NAMES: dict[str, str] = {
    "digits": "1,797 handwritten digits of scikit-learn, 8x8, grey, 10 classes; no download",
    "cifar10": "CIFAR-10, 32x32, colour, 10 classes; downloaded by torchvision",
    "cifar100": "CIFAR-100, 32x32, colour, 100 classes; downloaded by torchvision",
    "cifar10-jpeg": "CIFAR-10 re-encoded as JPEG, from an archive; not comparable with CIFAR-10",
    "imagefolder:PATH": "a folder of images, train/<class>/ and test/<class>/; data.size resizes",
    "npz:FILE": "x_train, y_train, x_test, y_test in a NumPy archive; uint8 or floats in [0,1], NCHW or NHWC",
}


def slug(name: str) -> str:
    """Return a data set's name as a folder name: "imagefolder:/data/My pets" becomes "imagefolder-my-pets"."""
    kind, colon, location = name.partition(":")
    if not colon:
        return kind
    path = Path(location).expanduser().resolve()
    stem = path.stem if kind == "npz" else path.name
    return f"{kind}-{re.sub('[^a-z0-9._]+', '-', stem.lower()).strip('-.')}"
