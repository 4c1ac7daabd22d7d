"""What a model file may hold, what it says about itself, and how its outputs are meant.

Contents:
    limits      how large and how often a model may ask for anything
    trust       parts of one's own, of modules that an operator trusts, and what is kept out when Keras is imported
    allowlist   which parts of Keras a model may be made of
    arrays      a model of named arrays: how it is told of in a Keras model's place
    archive     the one reader of a .keras archive
    card        what a saved model says about itself
    kinds       which of these a Keras model's weights are
    loss        a compiled loss: its name, and how it wants labels
    ending      the activation that a model ends with
    head        outputs read as probabilities, decided once from the model
    needs       what a Keras model needs of a site's data
    fit         whether a site has it
    likeness    whether sites hold the same kind of examples
"""
