"""Scores whole files (`sparserm score`, `compare`, `filter`, `rank`): here, on a server or on Ray."""
