"""What graphs of all stages are built with: nodes that know their values, sizes, the gates."""
