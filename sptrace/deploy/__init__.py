"""Taking artifacts elsewhere: into a browser, a model server, a C++ program. Needs neither torch nor onnx."""
