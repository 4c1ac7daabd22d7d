"""Trainers of one's own, each with its task: scikit-learn, JAX, PyTorch.

Contents:
    digits             what they train on: scikit-learn's digits, or an .npz
    sklearn_logistic   logistic regression
    sklearn_mlp        a small neural network of scikit-learn's, by its weights
    jax_optax          a neural network in JAX, with optax; knows FedProx's term
    torch_mlp          a neural network in PyTorch
"""
