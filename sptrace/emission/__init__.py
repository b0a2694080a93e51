"""From a torch.fx graph of ATen ops to one ONNX file."""
