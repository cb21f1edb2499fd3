"""moe-advisor reads a profile of Mixture-of-Experts training and says what to change."""

__version__ = "0.1.0"
