"""Training: recipes, the loop, averages, checkpoints."""
