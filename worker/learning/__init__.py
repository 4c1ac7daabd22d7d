"""A model on this site: built from allowed parts, trained, measured and used.

Contents:
    wire_model         builds the untrained architecture that a round start describes
    saved_model        opens a trained .keras file, and compares its card with the data here
    inference          the one way to a model's predictions: each example by itself
    terms              what a strategy adds to the gradient
    gradient_step      one step of it, traced once
    fresh_start        what an earlier round left in the model is forgotten
    results            what training and measuring tell
    console            how a training is shown
    evaluation         the arithmetic of accuracy, AUC and confusion, and a saved model measured with it
    ways/              trained and measured as a classifier, or on whatever the model needs
    values             a saved model that is no classifier, measured and used
    training           one model, built once: trained and measured round after round
    prediction         class and probability of images
"""
