"""Running artifacts: what a service imports. Needs numpy, onnxruntime and Pillow alone."""
