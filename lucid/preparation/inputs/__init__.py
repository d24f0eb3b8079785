"""What a corpus is made of: finds the inputs, cuts them into pieces, and reads their documents."""
