"""One address for several server processes: gateway, workers, routing, merged metrics."""
