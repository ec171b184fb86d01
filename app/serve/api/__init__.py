"""The native HTTP API: routes, schemas, serialization, error handlers and the OpenAPI document."""
