"""A phase from its configuration to the trained model: steps, checkpoints, losses."""
