"""Sweeps: plan, jobs, record, comparison."""
