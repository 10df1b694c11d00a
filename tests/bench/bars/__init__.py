"""The bars of speed: what the pack has to reach on one H200, judged from the rows that the benches wrote."""
