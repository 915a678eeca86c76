"""Models to evaluate: a checkpoint, your own model, or one of RobustBench's zoo, loaded and examined."""
