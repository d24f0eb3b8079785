"""What looks at runs rather than makes them: plots, and where the time of a step goes."""
