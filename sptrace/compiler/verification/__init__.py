"""Is the file right? The ONNX program against torch.fx and against an independent eager implementation."""
