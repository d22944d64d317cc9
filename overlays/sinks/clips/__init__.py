"""The clip sink: video clips of what a condition selects."""
