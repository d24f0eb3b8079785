"""Communication between ranks: the protocol in `communicator.py`, and a file for each backend."""
