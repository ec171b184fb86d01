"""The HTTP server: application, batching, dialects, metrics and processes."""
