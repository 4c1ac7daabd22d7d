"""Under the two pages: a port, a server with caps, how they look, and safety from other sites.

Contents, from the ground up; nothing imports what stands below it on this page:
    listening    a port of one's own, and what to type into a browser
    origins      where a request comes from: this machine, this very page, or somebody else's
    pages        how the two pages look alike (static/page.css), and JSON that their scripts can read
    http_server  the server under the pages: waitress, with caps
"""
