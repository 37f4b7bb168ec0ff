"""The start of a run: launch environment, rendezvous, handshake, reachability, link benchmark."""
