"""How Warren is run: the broker's settings, a compose file, an image, Kubernetes; found by importlib.resources."""
