"""The networks and what computes them."""
