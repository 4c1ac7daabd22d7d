"""Examples of any form: named inputs and targets, in memory or streamed, as a model takes them.

Contents, from the ground up; nothing imports what stands below it on this page:
    naming     what a person's function or file gives, as named arrays
    table      named arrays in memory, checked
    stream     batches that come one after the other, and are never in memory together
    fitted     a table or a stream in the order and the shapes that a model takes
    rows       inputs alone, of an .npz or a .csv, for a model that is asked
    table_set  a participant's data set of these
"""
