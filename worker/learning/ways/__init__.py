"""The two ways in which a model is trained and measured: as a classifier of labelled examples, or on whatever it needs.

Contents, from the ground up; nothing imports what stands below it on this page:
    pace      how many steps are taken in one call
    compiled_metrics  a model's own metrics, and what of them adds up over workers
    batches   examples in an epoch's order, prepared while the model trains
    way       what the two have in common
    classes   labelled examples: figures of classes besides the model's own
    general   named inputs and targets: the model's own loss and metrics
"""
