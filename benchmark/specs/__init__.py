"""What configs/ says: recipes, protocols and the registry of metrics, checked as they are read."""
