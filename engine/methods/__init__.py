"""The explaining methods, one file each, all behind one signature."""
