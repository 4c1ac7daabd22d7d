"""What leaves this site before a training, and what its operator says to that.

Contents, from the ground up; nothing imports what stands below it on this page:
    sums           exact sums of float32 values, as whole numbers
    bins           counts of values, and which of them may be told
    telling        what one site has told, and will tell, of its examples
    resting        when no rounds are taken: paused by a person, or outside the site's hours
    memory         how much processes take
    global_models  the models that came, kept as files
    check          what opening the data has found, as a table
    reaching       whether the broker is reached: certificate, login, queue, clock
    data_options   how a command is told what the data are
    options        what an operator says of rounds, on the command line
    pausing        the commands `worker pause` and `worker resume`
    check_command  `worker check`
"""
