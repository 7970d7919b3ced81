"""Distillation: trajectories collected from a teacher, and how much of a distribution to keep."""
