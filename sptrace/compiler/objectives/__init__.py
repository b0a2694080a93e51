"""What of a network is explained: its outputs, or a layer of it, and the cotangent that the adjoint begins with."""
