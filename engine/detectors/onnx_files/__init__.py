"""Reads detectors from ONNX files of other projects."""
