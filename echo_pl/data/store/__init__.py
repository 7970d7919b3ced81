"""Corpora on the disk: shards, index, remote folders, cache."""
