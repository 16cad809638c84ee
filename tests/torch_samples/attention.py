"""PyTorch's functions of this family, in our ops."""
