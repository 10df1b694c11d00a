"""DC-AE, deep compression autoencoders for images (arXiv 2410.10733)."""
