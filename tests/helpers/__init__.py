"""What several tests use: networks, weights that any machine rebuilds, second computations."""
