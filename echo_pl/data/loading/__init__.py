"""From shards to batches: order, stream, processor, collator, datamodule."""
