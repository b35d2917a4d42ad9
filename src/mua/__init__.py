"""mua: train and evaluate language-model agents that work with a person over tools."""

__version__ = "0.1.0"
