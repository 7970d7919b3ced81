"""Readers: one dataset each."""
