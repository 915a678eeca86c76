"""From recipes to entries: training, evaluating, and writing what was found."""
