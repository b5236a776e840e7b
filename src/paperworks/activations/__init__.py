"""Activation functions and activation layers as drop-in `torch.nn` modules, one module a paper."""
