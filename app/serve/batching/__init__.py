"""From requests to forward passes: admission, fair queue, batcher, executor."""
