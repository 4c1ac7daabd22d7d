"""A model on this site: built from allowed parts, trained, measured and used.

Contents:
    wire_model         a model from the wire, built only from allowed parts
    saved_model        a model from a file, likewise
    inference          the one way to a model's answers: each example by itself
    terms              what a strategy adds to the gradient
    gradient_step      one step of it, traced once
    compiled_metrics   a model's own metrics, and what of them adds up over workers
    training           local training and evaluation
    evaluation         accuracy, AUC and confusion of a model
    prediction         class and probability of images
"""
