"""Commands about brokers, their certificates and who may take part; `broker up`, `down` and `status` are in broker/cli.

Contents, from the ground up; nothing imports what stands below it on this page:
    home          which broker is meant: of this home, or elsewhere
    overview      what `broker status` shows
    certs         `broker certs`, and how `broker up` is reached by others
    participants  `broker invite`, `revoke` and `forget`
"""
