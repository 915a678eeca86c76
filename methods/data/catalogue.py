"""The names of the data sets, importable without torch."""

NAMES: dict[str, str] = {
    "digits": "1,797 handwritten digits of scikit-learn, 8x8, grey, 10 classes; no download",
    "cifar10": "CIFAR-10, 32x32, colour, 10 classes; downloaded by torchvision",
    "cifar100": "CIFAR-100, 32x32, colour, 100 classes; downloaded by torchvision",
    "cifar10-jpeg": "CIFAR-10 re-encoded as JPEG, from an archive; not comparable with CIFAR-10",
    "imagefolder:PATH": "a folder of images, train/<class>/ and test/<class>/; data.size resizes",
    "npz:FILE": "x_train, y_train, x_test, y_test in a NumPy archive; uint8 or floats in [0,1], NCHW or NHWC",
}
