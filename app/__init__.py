"""SparseRM: reward models one can read. Rooms and floors are drawn in README.md."""
