"""A participant's examples, from any file to arrays; nothing here knows of a model or of a broker.

Contents:
    images         any image file to the pixels that a model takes
    deep_images    those of more than 8 bits, and TIFF
    dicom          a hospital's own format, whose tags stay inside
    dicom_codecs   its compressions that Pillow doesn't read
    classes        class names, found or declared
    listing        what a data set is before anything is decoded
    folders        folders of images: class, patient, and what is left out
    arrays         labelled arrays, from a file or a function
    finding        which of these a data path leads to
    sources        where examples come from once it is opened: arrays, or images decoded once per shape
    data_set       a participant's data set: what is trained on, what is tested on, what is held out
    partition      cutting examples into sites, patients undivided
    split          the same for files: `worker split`
"""
