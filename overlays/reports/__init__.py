"""HTML reports of training and evaluation."""
