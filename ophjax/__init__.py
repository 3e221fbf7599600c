"""Published systems of ophthalmic and medical image analysis as pure functions over Flax modules."""

__version__ = "0.1.0"
