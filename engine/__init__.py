"""The engine: models, Recipro-CAM, backends, fine-tuning and evaluation."""
