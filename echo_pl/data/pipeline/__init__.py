"""From a dataset's files to normalized shards: steps that can be killed at any moment and go on where they were.

:func:`echo_pl.data.pipeline.run.prepare` is the whole way; each other file is one step of it, or one thing that steps share.
"""
