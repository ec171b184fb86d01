"""The native HTTP API: routes, schemas, and how errors are answered."""
