"""A small model for where there is no Python: an ONNX file (`graph`), or one file of C (`source`)."""
