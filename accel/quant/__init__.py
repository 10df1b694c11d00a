"""4-bit models: their layout, their files and their arithmetic."""
