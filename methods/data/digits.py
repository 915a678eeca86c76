"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, shipped inside the library."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from methods.data.images import ImageSet, Pool
from methods.data.splits import hold_out

TEST = 300


def read() -> Pool:
    """Return the digits as uint8 [N,1,8,8]; their values 0..16 become round(v * 255 / 16).

    scikit-learn ships one set without a split: a sixth of each class, 300 images in all, is the test set,
    the same for ever (``hold_out``).
    """
    values, target = load_digits(return_X_y=True)
    images = torch.as_tensor(np.asarray(values)).mul(255).div(16).round().to(torch.uint8).view(-1, 1, 8, 8)
    whole = ImageSet(images, torch.as_tensor(np.asarray(target), dtype=torch.int64))
    train, test = hold_out(whole.labels, TEST)
    return Pool(tuple(str(digit) for digit in range(10)), whole.select(train), whole.select(test))
