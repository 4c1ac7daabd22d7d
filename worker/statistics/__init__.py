"""What a site tells of its examples before a training: sums and counts, and none that rests on few of them.

Contents, from the ground up; nothing imports what stands below it on this page:
    sums   exact sums of float32 values, as whole numbers
    bins   counts of values, and which of them may be told
    site   what one site has told, and will tell
"""
