"""SparseRM: reward models whose rewards can be explained. CONTRIBUTING.md describes the package tree."""
