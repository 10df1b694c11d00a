"""One reader for each format of 4-bit models; all of them give the natural layout (weight4.py)."""
