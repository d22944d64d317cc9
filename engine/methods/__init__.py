"""Explanation methods: Recipro-CAM, ViT-ReciproCAM, CAM and the gradient-based methods for comparison."""
