"""Does the explanation tell the truth? Formulas, boxes and the measuring of pictures."""
