"""Keras and TensorFlow: builders, plans and the compiled training loop."""
