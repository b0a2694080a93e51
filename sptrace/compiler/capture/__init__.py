"""From a network to a torch.fx graph of ATen ops, the network unchanged."""
