"""Training runs: start, resume, lineage, checkpoints."""
