"""Training: the contract of a method, its configuration, and the one loop that trains them all."""
