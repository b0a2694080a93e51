"""What an artifact says about itself, and what its words mean. Needs neither torch nor onnx."""
