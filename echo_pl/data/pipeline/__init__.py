"""From a dataset's files to normalized shards, in steps that can be killed at any moment and resumed.

:func:`echo_pl.data.pipeline.run.prepare` runs all steps.
"""
