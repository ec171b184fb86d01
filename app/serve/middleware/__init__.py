"""What applies to every request: authentication, limits, access log, tracing."""
