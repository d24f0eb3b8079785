"""What carries arrays between ranks: the protocol, and one file for each way of carrying them."""
