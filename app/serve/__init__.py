"""The HTTP server: application, APIs, adapters, batching, middleware, metrics and processes."""
