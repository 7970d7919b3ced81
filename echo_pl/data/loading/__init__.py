"""Batches from shards: order, stream, processor, collator, datamodule."""
