"""How Warren is run: the broker's settings, a compose file, an image, Kubernetes."""
