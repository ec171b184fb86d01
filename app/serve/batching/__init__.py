"""How requests become batches of forward passes: admission control, fair queue, batcher, executor."""
