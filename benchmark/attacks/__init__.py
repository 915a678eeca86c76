"""AutoAttack and its parts, and the checks that tell whether an attack's failure speaks for the model."""
