"""Several server processes behind one address: the gateway, its workers, request routing, merged metrics."""
