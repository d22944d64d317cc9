"""Cone plan: exact responses of single boxes to masks, computing only what a mask changes and the box needs."""
