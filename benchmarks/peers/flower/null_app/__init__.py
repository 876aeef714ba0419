"""Clients of Flower that return a model of the CNN's size untouched."""
