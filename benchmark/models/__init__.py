"""What is evaluated: a checkpoint, your own model, or one of RobustBench's zoo, loaded and examined."""
