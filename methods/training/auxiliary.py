"""A network of a method's own beside the one that is trained: a teacher, a strategy network."""

from methods.backbones import BackboneConfig, Classifier, build
from methods.errors import InputError
from methods.training.method import Task


def auxiliary(config: BackboneConfig, task: Task, outputs: int, where: str) -> Classifier:
    """Build the network ``config`` describes, in train mode, for the images of the task.

    Args:
        config: the network.
        task: the shape of the images.
        outputs: its logits.
        where: the key of ``config`` in a recipe, for the error.

    Raises:
        InputError: it normalises by the data set's statistics, which a method is not told.
    """
    if config.normalize == "dataset":
        raise InputError(f'{where}.normalize is "none" or "half": a method does not know the statistics of its data.')
    return build(config, outputs, task.image_shape, (), ())
