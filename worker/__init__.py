"""One participant: its private data, local training, and the use of the trained model on its own images.

Contents:
    images       any image file to the pixels that a model takes
    deep         those of more than 8 bits, and TIFF
    dicom        a hospital's own format, whose tags stay inside
    dicom_codecs its compressions that Pillow doesn't read
    classes      class names, found or declared
    layout       what a data set is before anything is decoded
    folders      folders of images: class, patient, and what is left out
    arrays       labelled arrays, from a file or a function
    finding      which of these a data path leads to
    data         a participant's data set, decoded once
    partition    cutting examples into sites, patients undivided
    split        the same for files: `worker split`
    tensorflow   Keras, loaded late and quietly
    safe_model   a model from the wire, built only from allowed parts
    model_file   a model from a file, likewise
    inference    the one way to a model's answers: each example by itself
    terms        what a strategy adds to the gradient
    gradient_step one step of it, traced once
    compiled_metrics a model's own metrics, and what of them adds up over workers
    training     local training and evaluation
    receiving    round starts put together from their parts
    uploading    an update on its way
    trainer      the answer to one round start
    failures     what of an exception is told to the coordinator
    jobs         what is to be done next, handed from thread to thread
    postbox      the thread that hears
    participation the thread that trains and uploads
    console      how a training is shown
    service      from the command line to a worker that takes part
    baseline     the same training with no federation
    evaluation   accuracy, AUC and confusion of a model
    prediction   class and probability of images
    gradcam      where a model looked
    reading      what is said about one X-ray
    clinic_model the model that answers, taken anew when it changes
    clinic       the doctor's page: `worker clinic`
    cli          the command `worker`
"""
