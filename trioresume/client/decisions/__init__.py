"""The client's decisions, without I/O: what to do next, and which answers to believe.

``transfer`` has the rules and the table of all decisions, and ``resumption`` those after
the upload has begun. ``actions`` has the values between them and the code that performs
them. ``protocol_choice`` finds out which protocol to speak, ``portals`` tells a server's
answers from those of a network in between, and ``retry`` says when to try again.
"""
