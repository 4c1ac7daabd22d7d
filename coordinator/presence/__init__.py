"""The coordinator's place at the broker: its queue, who is there, and who can't be understood.

Contents:
    session      the place at the broker: its queue, its single reader, who is there
    strangers    whoever speaks another version: refused by name
    broker_room  the room that the broker has for a run's messages
    survey       what the sites' examples are like, asked in two steps
    clock        time that stands still while the connection is lost
    seldom       what takes the longer the more workers there are
"""
