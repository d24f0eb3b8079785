"""What the folder of a run says, for people: a report as a page, and the model card of an export, of the same facts."""
