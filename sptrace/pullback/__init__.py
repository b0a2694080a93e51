"""The adjoint: a table of transposition rules, and the walk that applies them."""
