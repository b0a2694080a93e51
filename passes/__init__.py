"""Graph passes: each file one rewrite, graph in, graph out."""
