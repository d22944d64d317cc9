"""Classifiers of other programs: their files are read, cut and run by OpenVINO."""
