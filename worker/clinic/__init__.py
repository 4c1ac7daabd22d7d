"""The doctor's page: `worker clinic`.

Contents:
    app             the doctor's page: `worker clinic`
    budget          what one request may cost
    current_model   the model in use, taken anew when it changes
    report          what is said about one X-ray
    gradcam         where a model looked
"""
