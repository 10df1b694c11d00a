"""Small additions to the pack, made by the recipes of CONTRIBUTING.md alone, for a test that follows them in a copy."""
