"""TensorRT: engines built from ONNX or by torch-tensorrt, and run on an NVIDIA GPU."""
