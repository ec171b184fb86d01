"""Scores whole files: `sparserm score`, `compare`, `filter` and `rank`, in this process, on a server or on Ray."""
