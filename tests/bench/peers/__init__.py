"""The same work on Flower and NVIDIA FLARE, each in a virtual environment of its own."""
