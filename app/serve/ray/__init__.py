"""The server on Ray Serve: deployments, request routing and scaling, and the connection to a cluster."""
